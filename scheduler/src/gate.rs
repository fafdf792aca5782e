//! Who calls, and what that one may: decided once for each call, before any service sees it. What is not in the table is for admins.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Extensions, HeaderMap, Response};
use axum::middleware::Next;
use scalable_tls::{SchedulerCredentials, Secret, WorkerIdentity};
use tonic::Status;

use crate::tls::TlsPeer;

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Whoever shows the one token of a local cluster.
    Local,
    /// May look.
    Viewer,
    /// May look and submit.
    Submitter,
    /// May do what people may.
    Admin,
    /// A worker that has no certificate yet.
    Starting,
    /// A worker with a certificate.
    Worker(Arc<WorkerIdentity>),
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A role from viewer upwards.
    Look,
    /// A role from submitter upwards.
    Submit,
    /// The role admin.
    Admin,
    /// A worker's certificate.
    Work,
    /// The bootstrap token, or a worker's certificate.
    Certificate,
}

/// What a call of this path needs; nothing for a path that is not known.
pub fn need(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    Some(match (service, method) {
        ("scalable.v1.WorkerService", _) => Need::Work,
        ("scalable.v1.CertificateService", _) => Need::Certificate,
        ("scalable.v1.ClientService", _) => Need::Submit,
        ("scalable.v1.ControlService", "ListRuns" | "GetStatus" | "ListTasks" | "Explain") => Need::Look,
        ("scalable.v1.ControlService", "Cancel" | "OfferContent" | "ListRunFiles" | "AcknowledgeRun" | "ReadLog") => Need::Submit,
        ("scalable.v1.ControlService", "Shutdown") => Need::Admin,
        ("scalable.v1.MonitoringService", _) => Need::Look,
        ("grpc.health.v1.Health" | "grpc.reflection.v1.ServerReflection", _) => Need::Look,
        _ => return None,
    })
}

impl Caller {
    /// True when it may make calls of this kind.
    #[expect(clippy::match_like_matches_macro, reason = "a table is read line by line")]
    pub fn may(&self, need: Need) -> bool {
        match (self, need) {
            (Caller::Local, _) => true,
            (Caller::Admin, Need::Admin | Need::Submit | Need::Look) => true,
            (Caller::Submitter, Need::Submit | Need::Look) => true,
            (Caller::Viewer, Need::Look) => true,
            (Caller::Worker(_), Need::Work | Need::Certificate) => true,
            (Caller::Starting, Need::Certificate) => true,
            _ => false,
        }
    }

    /// The worker it is, where a certificate says so.
    pub fn worker(&self) -> Option<&Arc<WorkerIdentity>> {
        if let Caller::Worker(worker) = self { Some(worker) } else { None }
    }

    fn word(&self) -> &'static str {
        match self {
            Caller::Local => "local",
            Caller::Viewer => "viewer",
            Caller::Submitter => "submitter",
            Caller::Admin => "admin",
            Caller::Starting => "starting worker",
            Caller::Worker(_) => "worker",
        }
    }
}

/// Knows every token. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Known>);

#[derive(Debug)]
enum Known {
    One(Secret),
    Roles { bootstrap: Secret, submit: Secret, view: Option<Secret>, admin: Option<Secret> },
}

impl Gate {
    /// One token opens everything.
    pub fn local(token: Secret) -> Gate {
        Gate(Arc::new(Known::One(token)))
    }

    /// Tokens and certificates of roles.
    pub fn of_roles(credentials: &SchedulerCredentials) -> Gate {
        Gate(Arc::new(Known::Roles {
            bootstrap: credentials.bootstrap.clone(),
            submit: credentials.submit.clone(),
            view: credentials.view.clone(),
            admin: credentials.admin.clone(),
        }))
    }

    /// Who shows these headers on this connection; nobody when nothing of it is good. A worker that shows a token is what the token says.
    pub fn caller(&self, headers: &HeaderMap, connection: &Extensions) -> Option<Caller> {
        let shown = headers.get(AUTHORIZATION).map(|value| value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")));
        match (&*self.0, shown) {
            (Known::One(token), Some(Some(shown))) => token.matches(shown).then_some(Caller::Local),
            (Known::One(_), _) => None,
            (Known::Roles { bootstrap, submit, view, admin }, Some(Some(shown))) => {
                // All are compared, whichever it is.
                let is = |secret: Option<&Secret>| secret.is_some_and(|secret| secret.matches(shown));
                let known = [is(admin.as_ref()), is(Some(submit)), is(view.as_ref()), is(Some(bootstrap))];
                match known {
                    [true, ..] => Some(Caller::Admin),
                    [_, true, ..] => Some(Caller::Submitter),
                    [_, _, true, _] => Some(Caller::Viewer),
                    [.., true] => Some(Caller::Starting),
                    _ => None,
                }
            }
            (Known::Roles { .. }, Some(None)) => None,
            (Known::Roles { .. }, None) => {
                let (worker, until) = connection.get::<TlsPeer>()?.worker.clone()?;
                // A connection may outlive the certificate that it was made with.
                (SystemTime::now() < until).then_some(Caller::Worker(worker))
            }
        }
    }

    /// Who calls, when that one may make this call.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with the same words whatever was wrong; `PERMISSION_DENIED` for a role that may not.
    pub fn admit(&self, need: Need, headers: &HeaderMap, connection: &Extensions) -> Result<Caller, Status> {
        let caller = self.caller(headers, connection).ok_or_else(|| {
            Status::unauthenticated(match &*self.0 {
                Known::One(_) => "this call needs the cluster's token: authorization: Bearer <content of the token file>",
                Known::Roles { .. } => {
                    "this call needs a token of this cluster (authorization: Bearer …), or a worker's certificate that has not expired"
                }
            })
        })?;
        if caller.may(need) {
            return Ok(caller);
        }
        Err(Status::permission_denied(format!("a {} may not make this call", caller.word())))
    }
}

/// Stands before every service of 8786.
pub async fn guard(State(gate): State<Gate>, mut request: Request, next: Next) -> Response<Body> {
    let need = need(request.uri().path()).unwrap_or(Need::Admin);
    match gate.admit(need, request.headers(), request.extensions()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(status) => status.into_http(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use prost::Message;
    use scalable_tls::NewCluster;

    use super::*;

    fn shown(value: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_token_itself_is_let_in() {
        let gate = Gate::local(Secret::parse(&"a".repeat(32)).unwrap());
        for (header, ok) in [
            (Some(format!("Bearer {}", "a".repeat(32))), true),
            (Some(format!("Bearer {}", "a".repeat(31))), false),
            (Some(format!("Bearer {}", "a".repeat(33))), false),
            (Some("Bearer nothing".to_owned()), false),
            (Some("Bearer ".to_owned()), false),
            (Some("a".repeat(32)), false),
            (None, false),
        ] {
            let admitted = gate.admit(Need::Admin, &shown(header.as_deref()), &Extensions::new());
            assert_eq!(admitted.is_ok(), ok, "{header:?}");
        }
    }

    #[test]
    fn every_call_of_the_wire_is_in_the_table() {
        let files = prost_types::FileDescriptorSet::decode(scalable_proto::v1::DESCRIPTORS).unwrap().file;
        let services = files.iter().flat_map(|file| file.service.iter().map(|service| (file.package(), service)));
        let paths = services.flat_map(|(package, service)| {
            service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
        });
        let unknown: Vec<String> = paths.filter(|path| need(path).is_none()).collect();
        assert!(unknown.is_empty(), "say in `need` what these take: {unknown:?}");
        assert_eq!(need("/scalable.v1.ControlService/Nothing"), None);
    }

    #[test]
    fn roles_may_what_they_may() {
        let directory = tempfile::tempdir().unwrap();
        let cluster = NewCluster::create("c-here").unwrap();
        for (name, content) in cluster.scheduler_files() {
            scalable_tls::write_private(&directory.path().join(name), &content).unwrap();
        }
        let credentials = SchedulerCredentials::read(directory.path()).unwrap();
        let gate = Gate::of_roles(&credentials);
        let none = Extensions::new();
        let with = |until: SystemTime| {
            let worker = Arc::new(WorkerIdentity::new("w", "u").unwrap());
            let mut connection = Extensions::new();
            connection.insert(TlsPeer { address: ([127, 0, 0, 1], 1).into(), worker: Some((worker, until)) });
            connection
        };
        let good = with(SystemTime::now() + Duration::from_secs(60));
        let expired = with(SystemTime::now() - Duration::from_secs(1));
        let bearer = |secret: &Secret| Some(format!("Bearer {}", secret.expose()));
        let (look, submit, admin, work, certificate) = (Need::Look, Need::Submit, Need::Admin, Need::Work, Need::Certificate);
        for (header, connection, may) in [
            (bearer(credentials.view.as_ref().unwrap()), &none, vec![look]),
            (bearer(&credentials.submit), &none, vec![look, submit]),
            (bearer(credentials.admin.as_ref().unwrap()), &none, vec![look, submit, admin]),
            (bearer(&credentials.bootstrap), &none, vec![certificate]),
            (None, &good, vec![work, certificate]),
            (None, &expired, vec![]),
            (None, &none, vec![]),
            (Some("Bearer nothing".to_owned()), &good, vec![]),
            (Some("Basic nothing".to_owned()), &good, vec![]),
        ] {
            let headers = shown(header.as_deref());
            for need in [look, submit, admin, work, certificate] {
                let admitted = gate.admit(need, &headers, connection);
                assert_eq!(admitted.is_ok(), may.contains(&need), "{header:?} {need:?}: {admitted:?}");
            }
        }
    }
}
