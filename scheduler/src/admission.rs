//! Which workers may have a certificate signed: those that the provider observes as its own, or that a file names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// Largest file of admitted workers.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a worker gets no certificate now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It may come to be known: it is to ask again.
    NotYet(String),
    /// It is somebody else.
    Never(String),
}

/// Says whether a worker is one of ours. Asked on a thread that may block.
pub trait Admission: Send + Sync {
    /// Whether the worker of this name and uid exists, is ours, and calls from its own address. `address` is none where a proxy is
    /// trusted.
    ///
    /// # Errors
    /// Why it gets no certificate.
    fn admit(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Result<(), NotAdmitted>;
}

#[derive(Clone, Debug)]
struct Known {
    uid: String,
    /// None: not known yet.
    address: Option<IpAddr>,
}

/// What a provider observes, shared with whoever signs. Cheap to clone. Bounded by what the provider itself keeps.
#[derive(Clone, Debug, Default)]
pub struct AdmissionTable(Arc<RwLock<HashMap<String, Known>>>);

impl AdmissionTable {
    /// The worker exists: its platform's uid, and its address as soon as it has one. The newest word counts.
    pub fn observed(&self, name: &str, uid: &str, address: Option<IpAddr>) {
        let known = Known { uid: uid.to_owned(), address };
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), known);
    }

    /// The instance with this uid is gone. One of the same name that has come since stays.
    pub fn gone(&self, name: &str, uid: &str) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if table.get(name).is_some_and(|known| known.uid == uid) {
            table.remove(name);
        }
    }
}

impl Admission for AdmissionTable {
    fn admit(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Result<(), NotAdmitted> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        let Some(known) = known else {
            return Err(NotAdmitted::NotYet(format!("no worker `{name}` is observed here yet")));
        };
        judge(name, uid, address, &known.uid, known.address)
    }
}

fn judge(
    name: &str,
    uid: &str,
    address: Option<IpAddr>,
    known_uid: &str,
    known_address: Option<IpAddr>,
) -> Result<(), NotAdmitted> {
    if known_uid != uid {
        return Err(NotAdmitted::Never(format!("worker `{name}` has another uid than {uid}")));
    }
    match (address, known_address) {
        (None, _) => Ok(()),
        (Some(_), None) => Err(NotAdmitted::NotYet(format!("the address of worker `{name}` is not known here yet"))),
        (Some(from), Some(own)) if from.to_canonical() == own.to_canonical() => Ok(()),
        (Some(from), Some(_)) => Err(NotAdmitted::Never(format!(
            "the call for worker `{name}` comes from {from}, which is not its address: \
             where a proxy stands between, start the scheduler with --trust-proxy"
        ))),
    }
}

/// Workers named by a file: lines of `NAME UID ADDRESS`, `*` for any address. Read at each question, so that it may change.
#[derive(Clone, Debug)]
pub struct AdmissionFile(pub PathBuf);

impl Admission for AdmissionFile {
    fn admit(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Result<(), NotAdmitted> {
        use std::io::Read;
        let mut text = String::new();
        let read = std::fs::File::open(&self.0).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        if let Err(error) = read {
            tracing::warn!(file = %self.0.display(), %error, "the file of admitted workers cannot be read");
            return Err(NotAdmitted::NotYet("the scheduler cannot read which workers are admitted".to_owned()));
        }
        // The last line of a name counts.
        let line =
            text.lines().rev().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|parts| parts.first() == Some(&name));
        match line.as_deref() {
            None => Err(NotAdmitted::NotYet(format!("no worker `{name}` is admitted yet"))),
            Some([_, known, "*"]) => judge(name, uid, None, known, None),
            Some([_, known, at]) => match at.parse() {
                Ok(at) => judge(name, uid, address, known, Some(at)),
                Err(_) => Err(NotAdmitted::NotYet(format!("the line of worker `{name}` has no address: write NAME UID ADDRESS"))),
            },
            Some(_) => Err(NotAdmitted::NotYet(format!("the line of worker `{name}` is not NAME UID ADDRESS"))),
        }
    }
}

/// Whom one of several admits. Where all refuse, "never" counts before "not yet": it comes from one that knows the name.
pub struct AnyOf(pub Vec<Box<dyn Admission>>);

impl Admission for AnyOf {
    fn admit(&self, name: &str, uid: &str, address: Option<IpAddr>) -> Result<(), NotAdmitted> {
        let mut refused = NotAdmitted::NotYet("nothing says here which workers are this cluster's".to_owned());
        for admission in &self.0 {
            match admission.admit(name, uid, address) {
                Ok(()) => return Ok(()),
                Err(why) if matches!(refused, NotAdmitted::NotYet(_)) => refused = why,
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn a_worker_is_admitted_as_the_instance_that_is_observed_and_from_its_address() {
        let table = AdmissionTable::default();
        let not_yet = |got: Result<(), NotAdmitted>| assert!(matches!(got, Err(NotAdmitted::NotYet(_))), "{got:?}");
        let never = |got: Result<(), NotAdmitted>| assert!(matches!(got, Err(NotAdmitted::Never(_))), "{got:?}");
        not_yet(table.admit("w", "u", ip(1)));
        table.observed("w", "u", None);
        not_yet(table.admit("w", "u", ip(1)));
        assert_eq!(table.admit("w", "u", None), Ok(()), "behind a trusted proxy");
        table.observed("w", "u", ip(1));
        assert_eq!(table.admit("w", "u", ip(1)), Ok(()));
        assert_eq!(table.admit("w", "u", Some("::ffff:10.0.0.1".parse().unwrap())), Ok(()));
        never(table.admit("w", "u", ip(2)));
        never(table.admit("w", "other", ip(1)));
        table.gone("w", "other");
        assert_eq!(table.admit("w", "u", ip(1)), Ok(()));
        table.gone("w", "u");
        not_yet(table.admit("w", "u", ip(1)));
    }

    #[test]
    fn a_file_names_workers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admitted");
        let file = AdmissionFile(path.clone());
        assert!(matches!(file.admit("w", "u", ip(1)), Err(NotAdmitted::NotYet(_))));
        std::fs::write(&path, "w old 10.0.0.9\n\nw u 10.0.0.1\nany u2 *\nbad u3\nworse u4 there\n").unwrap();
        assert_eq!(file.admit("w", "u", ip(1)), Ok(()));
        assert!(matches!(file.admit("w", "u", ip(2)), Err(NotAdmitted::Never(_))));
        assert!(matches!(file.admit("w", "old", ip(9)), Err(NotAdmitted::Never(_))));
        assert_eq!(file.admit("any", "u2", ip(77)), Ok(()));
        for name in ["bad", "worse", "unknown"] {
            assert!(file.admit(name, "u3", ip(1)).is_err(), "{name}");
        }
        let any = AnyOf(vec![Box::new(AdmissionTable::default()), Box::new(file)]);
        assert_eq!(any.admit("w", "u", ip(1)), Ok(()));
        assert!(matches!(any.admit("w", "u", ip(2)), Err(NotAdmitted::Never(_))), "one of them knows the name");
        assert!(any.admit("unknown", "u", ip(1)).is_err() && AnyOf(Vec::new()).admit("w", "u", ip(1)).is_err());
    }
}
