//! Who gets through to whom, over real sockets: certificates of this cluster and of another, good and expired, in the right role and
//! in a wrong one.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use scalable_tls::{
    Authority, Certificate, Connection, Connector, KeyRequest, Leaf, NewCluster, SchedulerCredentials, Trust, Validity,
    WorkerCredentials, WorkerIdentity, file, write_private,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const HOUR: Duration = Duration::from_secs(3600);

struct Cluster {
    authority: Authority,
    trust: Trust,
}

fn cluster(id: &str) -> Cluster {
    let authority = Authority::create(id).unwrap();
    Cluster { trust: Trust::new(id, authority.certificate()).unwrap(), authority }
}

fn worker() -> WorkerIdentity {
    WorkerIdentity::new("scalable-worker-a-1", "3a1c-77").unwrap()
}

fn held(leaf: Leaf) -> Certificate {
    let certificate = Certificate::default();
    certificate.set(vec![leaf.certificate], leaf.key, HOUR).unwrap();
    certificate
}

fn past() -> Validity {
    Validity { from: SystemTime::now() - 2 * HOUR, until: SystemTime::now() - HOUR }
}

/// A server that answers every connection that gets through with who it is.
async fn serve(trust: &Trust, own: &Certificate) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(trust.server(own, &["h2"]).unwrap());
    let cluster_id = trust.cluster_id().to_owned();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let shown = tls.get_ref().1.peer_certificates().map(|chain| chain[0].to_vec());
            let who = shown.map(|shown| WorkerIdentity::of_certificate(&shown, &cluster_id));
            let answer = match who {
                None => "nobody".to_owned(),
                Some(None) => "somebody".to_owned(),
                Some(Some((who, _))) => format!("{}/{}", who.name(), who.uid()),
            };
            let _ = tls.write_all(answer.as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    address
}

/// What the server says to a client of `trust` that shows `own`.
async fn ask(address: std::net::SocketAddr, trust: &Trust, own: Option<&Certificate>) -> Result<String, String> {
    let connector = Connector::new(trust, own).unwrap();
    let mut tls = connector.connect(&address.ip().to_string(), address.port()).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    // A server that refuses the client's certificate says so after the handshake.
    tls.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    Ok(answer)
}

#[tokio::test]
async fn only_this_clusters_scheduler_is_believed() {
    let (here, there) = (cluster("c-here"), cluster("c-there"));
    let good = held(here.authority.scheduler(Validity::of(HOUR)).unwrap());
    assert_eq!(ask(serve(&here.trust, &good).await, &here.trust, None).await.unwrap(), "nobody");

    // Another authority under the same name, another name under the same authority, a worker, an expired one, none at all.
    let same_name = cluster("c-here");
    let imposter = held(same_name.authority.scheduler(Validity::of(HOUR)).unwrap());
    let error = ask(serve(&same_name.trust, &imposter).await, &here.trust, None).await.unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let other_name = Trust::new("c-other", here.authority.certificate()).unwrap();
    assert!(ask(serve(&here.trust, &good).await, &other_name, None).await.unwrap_err().contains("not valid for name"));
    let foreign = held(there.authority.scheduler(Validity::of(HOUR)).unwrap());
    assert!(ask(serve(&there.trust, &foreign).await, &here.trust, None).await.is_err());
    let as_worker = held(here.authority.worker(&worker(), Validity::of(HOUR)).unwrap());
    assert!(ask(serve(&here.trust, &as_worker).await, &here.trust, None).await.unwrap_err().contains("not valid for name"));
    let expired = held(here.authority.scheduler(past()).unwrap());
    assert!(ask(serve(&here.trust, &expired).await, &here.trust, None).await.unwrap_err().contains("expired"));
    assert!(ask(serve(&here.trust, &Certificate::default()).await, &here.trust, None).await.is_err());
}

#[tokio::test]
async fn a_workers_certificate_says_who_it_is_and_another_clusters_or_an_expired_one_opens_nothing() {
    let (here, there) = (cluster("c-here"), cluster("c-there"));
    let address = serve(&here.trust, &held(here.authority.scheduler(Validity::of(HOUR)).unwrap())).await;
    // As in a worker: the key is made there, and what its request asks for is not what it gets.
    let request = KeyRequest::create().unwrap();
    let signed = here.authority.sign_worker(request.request(), &worker(), Validity::of(HOUR)).unwrap();
    let own = Certificate::default();
    assert!(!own.is_good() && own.renew_at().is_none());
    request.use_in(&own, vec![signed], HOUR).unwrap();
    assert!(own.is_good() && own.renew_at().is_some());
    assert_eq!(ask(address, &here.trust, Some(&own)).await.unwrap(), "scalable-worker-a-1/3a1c-77");
    own.forget();
    assert_eq!(ask(address, &here.trust, Some(&own)).await.unwrap(), "nobody");

    for bad in [
        held(there.authority.worker(&worker(), Validity::of(HOUR)).unwrap()),
        held(here.authority.worker(&worker(), past()).unwrap()),
        // The scheduler's own is none for a client.
        held(here.authority.scheduler(Validity::of(HOUR)).unwrap()),
    ] {
        assert!(ask(address, &here.trust, Some(&bad)).await.is_err());
    }
    assert!(here.authority.sign_worker(b"nonsense", &worker(), Validity::of(HOUR)).is_err());
    assert!(here.authority.sign_worker(&[0x30; 100_000], &worker(), Validity::of(HOUR)).is_err());
    let (one, other) = (KeyRequest::create().unwrap(), KeyRequest::create().unwrap());
    let signed = here.authority.sign_worker(one.request(), &worker(), Validity::of(HOUR)).unwrap();
    assert!(other.use_in(&own, vec![signed], HOUR).is_err(), "signed for another key");
}

#[tokio::test]
async fn whoever_fetches_objects_believes_workers_and_the_scheduler() {
    let (here, there) = (cluster("c-here"), cluster("c-there"));
    let dialer = here.trust.to_peers(None).unwrap();
    for (own, trust, good) in [
        (here.authority.worker(&worker(), Validity::of(HOUR)).unwrap(), &here.trust, true),
        (here.authority.scheduler(Validity::of(HOUR)).unwrap(), &here.trust, true),
        (here.authority.worker(&worker(), past()).unwrap(), &here.trust, false),
        (there.authority.worker(&worker(), Validity::of(HOUR)).unwrap(), &there.trust, false),
    ] {
        let address = serve(trust, &held(own)).await;
        let dialed = dialer.dial(TcpStream::connect(address).await.unwrap()).await;
        assert_eq!(dialed.is_ok(), good, "{:?}", dialed.err());
    }
}

#[test]
fn a_fresh_cluster_is_written_and_read_again() {
    let cluster = NewCluster::create(&NewCluster::random_id().unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (of_scheduler, of_workers) = (directory.path().join("scheduler"), directory.path().join("workers"));
    for (at, files) in [(&of_scheduler, cluster.scheduler_files()), (&of_workers, cluster.worker_files())] {
        std::fs::create_dir(at).unwrap();
        for (name, content) in files {
            write_private(&at.join(name), &content).unwrap();
        }
    }
    let scheduler = SchedulerCredentials::read(&of_scheduler).unwrap();
    let worker = WorkerCredentials::read(&of_workers).unwrap();
    assert_eq!(scheduler.trust.cluster_id(), worker.trust.cluster_id());
    assert!(scheduler.bootstrap == worker.bootstrap && scheduler.bootstrap != scheduler.submit);
    assert!(cluster.worker_files().keys().all(|name| ![file::CA_KEY, file::SUBMIT_TOKEN].contains(name)));

    let shown = format!("{scheduler:?} {worker:?} {cluster:?} {:?}", cluster.admin("https://there:8786"));
    for secret in cluster.scheduler_files().iter().filter(|(name, _)| name.ends_with("-token") || name.ends_with(".key")) {
        let part: String = secret.1.lines().nth(1).unwrap_or(secret.1).chars().take(20).collect();
        assert!(!shown.contains(&part), "{} is shown", secret.0);
    }

    for name in [file::CA_KEY, file::SUBMIT_TOKEN] {
        let path = of_scheduler.join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        let error = SchedulerCredentials::read(&of_scheduler).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("everybody"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let other = NewCluster::create("c-other").unwrap();
    write_private(&of_scheduler.join(file::CA_KEY), &other.authority().key()).unwrap();
    let error = SchedulerCredentials::read(&of_scheduler).unwrap_err().to_string();
    assert!(error.contains("not its certificate's"), "{error}");
    std::fs::remove_file(of_workers.join(file::BOOTSTRAP_TOKEN)).unwrap();
    assert!(WorkerCredentials::read(&of_workers).unwrap_err().to_string().contains(file::BOOTSTRAP_TOKEN));
}

#[test]
fn connection_files_are_private_and_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("connection.json");
    let cluster = NewCluster::create("c-here").unwrap();
    let connection = cluster.submitter("https://127.0.0.1:8786");
    connection.write(&path).unwrap();
    let read = Connection::read(&path).unwrap();
    assert!(read.token == connection.token && read.store_address.is_none());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Connection::read(&path).unwrap_err().to_string().contains("everybody"));
    for bad in [
        Connection { address: "http://127.0.0.1:8786".to_owned(), ..connection.clone() },
        Connection { cluster_id: "Not An Id".to_owned(), ..connection.clone() },
        Connection { ca_certificate: "nothing".to_owned(), ..connection.clone() },
        Connection { token: "short".to_owned(), ..connection.clone() },
    ] {
        bad.write(&path).unwrap();
        assert!(Connection::read(&path).is_err(), "{bad:?}");
    }
    write_private(&path, &format!("{{ \"token\": \"{}\" ", connection.token)).unwrap();
    assert!(!Connection::read(&path).unwrap_err().to_string().contains(&connection.token));
}
