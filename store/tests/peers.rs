//! Peers that mean well: everything arrives, once, from wherever it is, without a copy where it is near.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use scalable_store::*;

const MIB: usize = 1 << 20;

#[test]
fn objects_of_every_size_arrive_both_ways() {
    let world = World::new();
    let peer = world.peer("a");
    let ways = [("bytes", tcp_fetcher()), ("open files", fetcher(|_| ()))];
    for (i, len) in [0, 1, 1000, 64 << 10, MIB - 1, MIB, MIB + 8, 5 * MIB + 17].into_iter().enumerate() {
        let content = bytes(len, i as u64);
        let id = peer.put(i as u32, &content);
        for (way, fetcher) in &ways {
            let got = fetcher.fetch(world.request(id, len as u64, &[peer.holder()])).wait().unwrap();
            assert_eq!(got.bytes().unwrap(), content, "{len} bytes by {way}");
        }
    }
    let (by_bytes, by_files) = (ways[0].1.metrics(), ways[1].1.metrics());
    assert_eq!((by_bytes.fetched, by_bytes.shared, by_bytes.bytes_shared), (8, 0, 0));
    assert_eq!((by_files.fetched, by_files.shared, by_files.bytes_copied), (8, 8, 0));
    assert_eq!(by_bytes.bytes_copied, by_files.bytes_shared);
    assert!(ways[0].1.speed(&peer.holder().address).unwrap().bytes_per_second > 0.0);
    assert!(ways[1].1.speed(&peer.holder().address).unwrap().shares);
    assert_eq!(peer.server.metrics().served, 16);
}

#[test]
fn a_shared_object_is_the_very_same_memory_and_comes_back_when_it_is_dropped() {
    let world = World::new();
    let peer = world.peer("a");
    let fetcher = fetcher(|_| ());
    let first = peer.put(1, &bytes(MIB, 1));
    let got = fetcher.fetch(world.request(first, MIB as u64, &[peer.holder()])).wait().unwrap();
    let here = std::fs::File::from(got.as_fd().unwrap().try_clone_to_owned().unwrap());
    let Lookup::Here(there) = peer.store.get(first) else { panic!("it is in memory") };
    let there_file = std::fs::File::from(there.as_fd().unwrap().try_clone_to_owned().unwrap());
    use std::os::unix::fs::MetadataExt;
    assert_eq!(here.metadata().unwrap().ino(), there_file.metadata().unwrap().ino());
    drop((here, there_file, there));

    // Dropped at its holder it stays readable here, and its memory is not used again before it is let go here.
    assert!(peer.store.drop_object(first));
    let usage = peer.store.usage();
    assert_eq!((usage.objects, usage.memory_bytes, usage.pinned_bytes), (0, MIB as u64, MIB as u64));
    peer.put(2, &bytes(MIB, 2));
    assert_eq!(got.bytes().unwrap(), bytes(MIB, 1));
    drop(got);
    eventually("the lease has ended", || peer.server.metrics().leases == 0);
    eventually("the memory is free", || peer.store.usage().pooled_bytes == MIB as u64);

    // And then again, over the same connection, in memory that is mapped already.
    for round in 3..200 {
        let id = peer.put(round, &bytes(MIB, u64::from(round)));
        let got = fetcher.fetch(world.request(id, MIB as u64, &[peer.holder()])).wait().unwrap();
        assert_eq!(got.bytes().unwrap(), bytes(MIB, u64::from(round)));
        peer.store.drop_object(id);
        drop(got);
    }
    let (made, reused) = peer.store.pool().counts();
    assert!(made < 100 && reused > 100, "{made} made, {reused} used again");
}

#[test]
fn memory_that_a_dead_peer_may_still_read_is_not_used_again() {
    let world = World::new();
    let peer = world.peer("a");
    let id = peer.put(1, &bytes(MIB, 1));
    let fetcher = fetcher(|_| ());
    let got = fetcher.fetch(world.request(id, MIB as u64, &[peer.holder()])).wait().unwrap();
    peer.store.drop_object(id);
    drop(fetcher);
    eventually("the lease has ended", || peer.server.metrics().leases == 0);
    assert_eq!(peer.store.usage().pooled_bytes, 0);
    peer.put(2, &bytes(MIB, 2));
    assert_eq!(got.bytes().unwrap(), bytes(MIB, 1));
}

#[test]
fn many_fetches_of_one_object_cause_one_transfer() {
    let world = World::new();
    let store = world.store("a", 64 << 20);
    // Without a key it says "later" until all have asked.
    let server = PeerServer::start(ServerOptions::new(([127, 0, 0, 1], 0).into()), store.clone()).unwrap();
    let content = Content::from_bytes(bytes(4 * MIB, 1).into());
    drop(store.insert(id(1), content, Keep::Origin).unwrap());
    let fetcher = tcp_fetcher();
    let request = world.request(id(1), 4 << 20, &[holder(server.address())]);
    let fetches: Vec<Fetch> = (0..100).map(|_| fetcher.fetch(request.clone())).collect();
    eventually("all have joined", || fetcher.metrics().joined == 99);
    server.set_key(world.cluster.clone());
    let got: Vec<Content> = fetches.into_iter().map(|fetch| fetch.wait().unwrap()).collect();
    assert!(got.iter().all(|content| content.segment().unwrap().id() == got[0].segment().unwrap().id()));
    assert_eq!(got[0].bytes().unwrap(), bytes(4 * MIB, 1));
    let metrics = fetcher.metrics();
    assert_eq!((metrics.fetched, metrics.bytes_copied, server.metrics().served), (1, 4 << 20, 1));
    assert_eq!((metrics.pending, metrics.bytes_in_flight), (0, 0));
}

#[test]
fn a_large_object_comes_from_several_holders() {
    let world = World::new();
    let content = bytes(40 * MIB + 3, 9);
    let peers: Vec<Peer> = (0..3).map(|i| world.peer(&format!("p{i}"))).collect();
    for peer in &peers {
        peer.put(1, &content);
    }
    let holders: Vec<Holder> = peers.iter().map(Peer::holder).collect();
    let fetcher = tcp_fetcher();
    let got = fetcher.fetch(world.request(id(1), content.len() as u64, &holders)).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), content);
    for peer in &peers {
        assert!(peer.server.metrics().bytes_sent > 0);
    }
    assert_eq!(peers.iter().map(|peer| peer.server.metrics().bytes_sent).sum::<u64>(), content.len() as u64);
}

#[test]
fn spilled_and_foreign_files_are_served_as_they_lie() {
    let world = World::new();
    let peer = world.peer("a");
    let content = bytes(3 * MIB + 1, 4);
    let path = world.root.path().join("output");
    std::fs::write(&path, &content).unwrap();
    let digest = Digest::of(&content);
    drop(peer.store.insert_file(digest, std::fs::File::open(&path).unwrap(), content.len() as u64).unwrap());

    let small = world.store("small", 4 << 20);
    let server = PeerServer::start(ServerOptions::new(([127, 0, 0, 1], 0).into()), small.clone()).unwrap();
    server.set_key(world.cluster.clone());
    let spilled = Content::from_bytes(content.clone().into()).to_shared(small.pool()).unwrap();
    drop(small.insert(id(5), spilled, Keep::Origin).unwrap());
    eventually("it is spilled", || matches!(small.get(id(5)), Lookup::OnDisk));

    for (way, fetcher, shared) in [("bytes", tcp_fetcher(), 0), ("open files", fetcher(|_| ()), 1)] {
        // Twice: the second time the checksums are known and the file goes without passing through the server.
        for _ in 0..2 {
            let size = content.len() as u64;
            let file = fetcher.fetch(world.request(digest, size, &[peer.holder()])).wait().unwrap();
            assert_eq!(file.bytes().unwrap(), content, "a file by {way}");
            let spilled = fetcher.fetch(world.request(id(5), size, &[holder(server.address())])).wait().unwrap();
            assert_eq!(spilled.bytes().unwrap(), content, "a spilled object by {way}");
            assert!(matches!(small.get(id(5)), Lookup::OnDisk), "serving it does not bring it back");
        }
        assert_eq!(fetcher.metrics().shared, 2 * shared, "a spilled object is sent with its checksums");
    }
}

#[test]
fn the_short_cut_can_be_switched_off_on_either_side_and_is_not_taken_across_hosts() {
    let world = World::new();
    let content = bytes(100_000, 1);
    let off = world.peer_with("off", |options| options.short_cut = false);
    off.put(1, &content);
    let on = world.peer("on");
    on.put(2, &content);
    let elsewhere = Holder { host: "elsewhere".into(), ..on.holder() };
    let fetcher = fetcher(|options| options.host = "here".into());
    for (index, holder) in [(1, off.holder()), (2, elsewhere)] {
        let got = fetcher.fetch(world.request(id(index), 100_000, &[holder])).wait().unwrap();
        assert_eq!(got.bytes().unwrap(), content);
    }
    assert_eq!((fetcher.metrics().shared, fetcher.metrics().bytes_copied), (0, 200_000));
}

#[test]
fn uploads_are_seen_when_they_are_right() {
    let world = World::new();
    let blobs = BlobDirectory::open(world.root.path().join("blobs"), 16 << 20).unwrap();
    let uploads = blobs.clone();
    let peer = world.peer_with("scheduler", move |options| {
        options.uploads = Some(uploads);
        options.upload_bytes_max = 8 << 20;
    });
    let fetcher = tcp_fetcher();
    let upload = |content: &[u8], digest, capability| {
        let content = Content::from_bytes(content.to_vec().into());
        fetcher.upload(UploadRequest { address: peer.holder().address, content, digest, capability }).wait()
    };
    let program = bytes(3 * MIB + 5, 6);
    let digest = Digest::of(&program);
    let size = program.len() as u64;
    let soon = now_ms() + 60_000;
    upload(&program, digest, world.cluster.grant_upload(digest, size, soon)).unwrap();
    upload(&program, digest, world.cluster.grant_upload(digest, size, soon)).unwrap();
    assert_eq!(blobs.get(digest).unwrap().unwrap().bytes().unwrap(), program);
    assert_eq!(peer.server.metrics().bytes_received, size, "the second time it was there");
    let got = fetcher.fetch(world.request(digest, size, &[peer.holder()])).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), program);

    let refused = |answer: Result<(), SourceError>, code| assert_eq!(answer, Err(SourceError::Refused(code)));
    let other = Digest::of(b"other");
    refused(upload(b"wrong", other, world.cluster.grant_upload(other, 5, soon)), Code::Corrupt);
    refused(upload(b"other", other, world.cluster.grant_upload(other, 6, soon)), Code::Denied);
    refused(upload(b"other", other, world.cluster.grant_upload(other, 5, 1)), Code::Expired);
    refused(upload(b"other", other, world.cluster.grant(other.into(), soon)), Code::Denied);
    let big = bytes(9 * MIB, 1);
    let big_digest = Digest::of(&big);
    refused(upload(&big, big_digest, world.cluster.grant_upload(big_digest, big.len() as u64, soon)), Code::TooLarge);
    for seed in 10..14 {
        let more = bytes(5 * MIB, seed);
        let digest = Digest::of(&more);
        let answer = upload(&more, digest, world.cluster.grant_upload(digest, more.len() as u64, soon));
        assert_eq!(answer.is_ok(), seed < 12, "there is room for two: {answer:?}");
    }
    assert_eq!(std::fs::read_dir(blobs.path()).unwrap().count(), 3);
    upload(b"other", other, world.cluster.grant_upload(other, 5, soon)).unwrap();
}

/// The agent's reactor: one thread that must not block.
#[tokio::test(flavor = "current_thread")]
async fn futures_resolve_on_a_single_threaded_runtime() {
    let world = World::new();
    let peer = world.peer("a");
    let own = world.store("own", 64 << 20);
    let fetcher = fetcher(|options| options.pool = own.pool().clone());
    for index in 0..20 {
        peer.put(index, &bytes(200_000, u64::from(index)));
    }
    let fetches: Vec<Fetch> = (0..20).map(|i| fetcher.fetch(world.request(id(i), 200_000, &[peer.holder()]))).collect();
    for (index, fetch) in fetches.into_iter().enumerate() {
        let content = fetch.await.unwrap();
        drop(own.insert(id(index as u32), content, Keep::Replica).unwrap());
        let again = own.load(id(index as u32)).await.unwrap();
        assert_eq!(again.bytes().unwrap(), bytes(200_000, index as u64));
    }
    assert_eq!(own.load(id(99)).await.unwrap_err(), LoadError::Gone);
}
