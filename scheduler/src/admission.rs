//! Which workers may have a certificate signed: those that the provider observes as its own, or that a file names.

use std::net::IpAddr;
use std::path::PathBuf;

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

/// Compares a worker that asks with one that is known.
///
/// # Errors
/// Why it is not that one, or not known to be yet.
pub(crate) fn judge(
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
    fn a_worker_is_admitted_as_the_instance_that_is_known_and_from_its_address() {
        let ask = |uid: &str, from: Option<IpAddr>, known: Option<IpAddr>| judge("w", uid, from, "u", known);
        assert!(matches!(ask("u", ip(1), None), Err(NotAdmitted::NotYet(_))), "it has no address yet");
        assert_eq!(ask("u", None, None), Ok(()), "behind a trusted proxy");
        assert_eq!(ask("u", ip(1), ip(1)), Ok(()));
        assert_eq!(ask("u", Some("::ffff:10.0.0.1".parse().unwrap()), ip(1)), Ok(()));
        assert!(matches!(ask("u", ip(2), ip(1)), Err(NotAdmitted::Never(_))));
        assert!(matches!(ask("other", ip(1), ip(1)), Err(NotAdmitted::Never(_))));
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
        let any = AnyOf(vec![Box::new(AnyOf(Vec::new())), Box::new(file)]);
        assert_eq!(any.admit("w", "u", ip(1)), Ok(()));
        assert!(matches!(any.admit("w", "u", ip(2)), Err(NotAdmitted::Never(_))), "one of them knows the name");
        assert!(any.admit("unknown", "u", ip(1)).is_err() && AnyOf(Vec::new()).admit("w", "u", ip(1)).is_err());
    }
}
