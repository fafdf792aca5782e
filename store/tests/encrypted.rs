//! The peer protocol over TLS: everything arrives, from memory and from disk, uploads too; whoever is no part of the cluster gets
//! nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::*;
use scalable_store::*;
use scalable_tls::{Authority, Certificate, Trust, Validity, WorkerIdentity};

const MIB: usize = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

struct Cluster {
    trust: Trust,
    worker: Certificate,
}

fn cluster() -> Cluster {
    let authority = Authority::create("c-here").unwrap();
    let worker = Certificate::default();
    let leaf = authority.worker(&WorkerIdentity::new("w", "u").unwrap(), Validity::of(HOUR)).unwrap();
    worker.set(vec![leaf.certificate], leaf.key, HOUR).unwrap();
    Cluster { trust: Trust::new("c-here", authority.certificate()).unwrap(), worker }
}

impl Cluster {
    fn peer(&self, world: &World) -> Peer {
        let blobs = BlobDirectory::open(world.root.path().join("blobs"), 1 << 30).unwrap();
        world.peer_with("a", |options| {
            options.tls = Some(self.trust.server(&self.worker, &[]).unwrap());
            options.uploads = Some(blobs);
        })
    }

    fn fetcher(&self, own: Option<&Certificate>) -> Fetcher {
        fetcher(|options| {
            options.short_cut = false;
            options.tls = Some(self.trust.to_peers(own).unwrap());
        })
    }
}

#[test]
fn objects_of_every_size_arrive() {
    let (world, cluster) = (World::new(), cluster());
    let peer = cluster.peer(&world);
    // A worker shows who it is, a client shows its capability only.
    let ways = [cluster.fetcher(Some(&cluster.worker)), cluster.fetcher(None)];
    for (i, len) in [0, 1, 1000, 64 << 10, MIB - 1, MIB, MIB + 8, 5 * MIB + 17].into_iter().enumerate() {
        let content = bytes(len, i as u64);
        let id = peer.put(i as u32, &content);
        for fetcher in &ways {
            let got = fetcher.fetch(world.request(id, len as u64, &[peer.holder()])).wait().unwrap();
            assert_eq!(got.bytes().unwrap(), content, "{len} bytes");
        }
    }
    assert_eq!(peer.server.metrics().served, 16);
}

#[test]
fn uploads_arrive_and_are_served_from_their_files() {
    let (world, cluster) = (World::new(), cluster());
    let peer = cluster.peer(&world);
    let fetcher = cluster.fetcher(None);
    let content = bytes(3 * MIB + 5, 1);
    let digest = Digest::of(&content);
    let capability = world.cluster.grant_upload(digest, content.len() as u64, now_ms() + 60_000);
    let request = UploadRequest {
        address: peer.holder().address,
        content: Content::from_bytes(content.clone().into()),
        digest,
        capability,
    };
    fetcher.upload(request).wait().unwrap();
    // Once where its checksums are not known yet, once where they are.
    for _ in 0..2 {
        let got = fetcher.fetch(world.request(digest, content.len() as u64, &[peer.holder()])).wait().unwrap();
        assert_eq!(got.bytes().unwrap(), content);
    }
}

#[test]
fn strangers_get_nothing() {
    let (world, here, there) = (World::new(), cluster(), cluster());
    let peer = here.peer(&world);
    let id = peer.put(1, &bytes(1000, 1));
    let request = || world.request(id, 1000, &[peer.holder()]);
    // Without TLS, from another cluster, with another cluster's certificate, with an expired capability.
    assert!(tcp_fetcher().fetch(request()).wait().is_err());
    assert!(there.fetcher(None).fetch(request()).wait().is_err());
    assert!(here.fetcher(Some(&there.worker)).fetch(request()).wait().is_err());
    let late = FetchRequest { capability: world.cluster.grant(Key::Object(id), 1), ..request() };
    assert!(here.fetcher(None).fetch(late).wait().is_err());
    assert_eq!(peer.server.metrics().bytes_sent, 0);
    // Over TLS from one that speaks none.
    let plain = world.peer("plain");
    let id = plain.put(1, &bytes(1000, 1));
    assert!(here.fetcher(None).fetch(world.request(id, 1000, &[plain.holder()])).wait().is_err());
}
