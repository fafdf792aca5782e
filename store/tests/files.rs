//! Contents that go into files: whole, cut, damaged, from one holder and the next; and trees of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use common::*;
use scalable_store::*;

const MIB: usize = 1 << 20;

fn request(world: &World, content: &[u8], holders: &[Holder], part: &Path) -> FileRequest {
    let digest = Digest::of(content);
    let capability = world.cluster.grant(digest.into(), now_ms() + 600_000);
    FileRequest { digest, size: content.len() as u64, holders: holders.to_vec(), capability, part: part.to_owned() }
}

/// A peer that serves `contents` from files.
fn serving(world: &World, name: &str, contents: &[&[u8]]) -> Peer {
    let index = FileIndex::new();
    for content in contents {
        let digest = Digest::of(content);
        let path = world.root.path().join(format!("{name}-{digest}"));
        std::fs::write(&path, content).unwrap();
        index.add(digest, path);
    }
    world.peer_with(name, |options| options.files = Some(index))
}

/// A peer that answers a fetch from `offset` on with what `answer` makes of it, and closes the connection.
fn fake(answer: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Holder {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut hello = [0; 16];
            if stream.read_exact(&mut hello).is_err() {
                continue;
            }
            let greeting = [&b"SCALPEER"[..], &[1, 0, 0, 0], &(MIB as u32).to_le_bytes(), &[7; 16], &[0; 8]].concat();
            // Key and capability, offset, length.
            let mut asked = [0; 8 + 33 + 40 + 16];
            if stream.write_all(&greeting).is_err() || stream.read_exact(&mut asked).is_err() {
                continue;
            }
            let offset = u64::from_le_bytes(asked[81..89].try_into().unwrap());
            let _ = stream.write_all(&answer(offset));
        }
    });
    holder(address)
}

fn size(len: usize) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &[130, 0, 0, 0], &(len as u64).to_le_bytes()].concat()
}

fn chunk(offset: usize, content: &[u8], sum: u64) -> Vec<u8> {
    let head = [&(offset as u64).to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), &sum.to_le_bytes()].concat();
    [&20u32.to_le_bytes()[..], &[5, 0, 0, 0], &head, content].concat()
}

#[test]
fn contents_of_every_size_arrive_in_files_both_ways() {
    let world = World::new();
    let contents: Vec<Vec<u8>> =
        [0, 1, 1000, MIB - 1, MIB, MIB + 1, 3 * MIB + 5].iter().enumerate().map(|(i, len)| bytes(*len, i as u64)).collect();
    let peer = serving(&world, "a", &contents.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for (way, fetcher) in [("bytes", tcp_fetcher()), ("open files", fetcher(|_| ()))] {
        for (i, content) in contents.iter().enumerate() {
            let part = world.root.path().join(format!("{way}-{i}"));
            fetcher.fetch_file(request(&world, content, &[peer.holder()], &part)).wait().unwrap();
            assert_eq!(std::fs::read(&part).unwrap(), *content, "{way}");
        }
        let metrics = fetcher.metrics();
        assert_eq!((metrics.fetched, metrics.shared), (7, if way == "bytes" { 0 } else { 7 }), "{way}");
    }
}

#[test]
fn what_has_come_is_not_fetched_again() {
    let world = World::new();
    let content = bytes(5 * MIB + 3, 1);
    let peer = serving(&world, "a", &[&content]);
    let part = world.root.path().join("part");
    // Two chunks and a piece of the third are there.
    std::fs::write(&part, &content[..2 * MIB + 77]).unwrap();
    let fetcher = tcp_fetcher();
    fetcher.fetch_file(request(&world, &content, &[peer.holder()], &part)).wait().unwrap();
    assert_eq!(std::fs::read(&part).unwrap(), content);
    assert_eq!(fetcher.metrics().bytes_copied, 3 * MIB as u64 + 3);
    // All of it is there: nobody is asked.
    fetcher.fetch_file(request(&world, &content, &[holder(([127, 0, 0, 1], 1).into())], &part)).wait().unwrap();
    // Something else is there: it is fetched anew.
    let mut wrong = content.clone();
    wrong[7] ^= 1;
    std::fs::write(&part, &wrong).unwrap();
    fetcher.fetch_file(request(&world, &content, &[peer.holder()], &part)).wait().unwrap();
    assert_eq!(std::fs::read(&part).unwrap(), content);
}

#[test]
fn a_connection_that_is_cut_again_and_again_loses_nothing() {
    let world = World::new();
    let content = bytes(6 * MIB, 2);
    let whole = content.clone();
    // One chunk at a time, then the connection ends in the middle of the next.
    let cut = fake(move |offset| {
        let at = offset as usize;
        let piece = &whole[at..at + MIB];
        let mut out = size(whole.len());
        out.extend(chunk(at, piece, checksum(piece)));
        if at + MIB < whole.len() {
            out.extend(&chunk(at + MIB, piece, 0)[..1000]);
        }
        out
    });
    let part = world.root.path().join("part");
    let fetcher = tcp_fetcher();
    fetcher.fetch_file(request(&world, &content, &[cut], &part)).wait().unwrap();
    assert_eq!(std::fs::read(&part).unwrap(), content);
    assert_eq!(fetcher.metrics().bytes_copied, 6 * MIB as u64, "no chunk twice");
}

#[test]
fn damage_on_the_way_and_another_content_are_seen_and_the_next_holder_helps() {
    let world = World::new();
    let content = bytes(2 * MIB + 9, 3);
    let good = serving(&world, "good", &[&content]);
    let (damaged, other) = (content.clone(), bytes(content.len(), 4));
    let damaging = fake(move |offset| {
        let piece = &damaged[offset as usize..][..MIB.min(damaged.len() - offset as usize)];
        [size(damaged.len()), chunk(offset as usize, piece, checksum(piece) ^ 1)].concat()
    });
    let lying = fake(move |offset| {
        let mut out = size(other.len());
        for at in (offset as usize..other.len()).step_by(MIB) {
            let piece = &other[at..(at + MIB).min(other.len())];
            out.extend(chunk(at, piece, checksum(piece)));
        }
        out
    });
    for bad in [damaging, lying] {
        let part = world.root.path().join(format!("part-{}", bad.address));
        let alone = tcp_fetcher().fetch_file(request(&world, &content, std::slice::from_ref(&bad), &part)).wait();
        assert!(matches!(alone, Err(FileError::Unavailable { .. })), "{alone:?}");
        tcp_fetcher().fetch_file(request(&world, &content, &[bad, good.holder()], &part)).wait().unwrap();
        assert_eq!(std::fs::read(&part).unwrap(), content);
    }
}

#[test]
fn a_disk_that_refuses_is_no_fault_of_a_holder() {
    let world = World::new();
    let content = bytes(10, 5);
    let peer = serving(&world, "a", &[&content]);
    let part = world.root.path().join("no/such/directory");
    let refused = tcp_fetcher().fetch_file(request(&world, &content, &[peer.holder()], &part)).wait();
    assert!(matches!(&refused, Err(FileError::Disk { path, .. }) if *path == part), "{refused:?}");
}

#[test]
fn a_tree_arrives_whole_and_one_with_links_does_not() {
    let world = World::new();
    let made = world.root.path().join("made");
    std::fs::create_dir_all(made.join("sub/empty")).unwrap();
    std::fs::write(made.join("a"), bytes(3, 1)).unwrap();
    std::fs::write(made.join("sub/large"), bytes(2 * MIB, 2)).unwrap();
    let serve = |made: &Path, name: &str| -> (Peer, Vec<u8>) {
        let tree = Tree::scan(made).unwrap();
        let encoded = tree.encode();
        let mut contents: Vec<Vec<u8>> = vec![encoded.clone()];
        for (path, node) in tree.entries() {
            if let TreeNode::File { .. } = node {
                contents.push(std::fs::read(made.join(std::str::from_utf8(path).unwrap())).unwrap());
            }
        }
        (serving(&world, name, &contents.iter().map(Vec::as_slice).collect::<Vec<_>>()), encoded)
    };
    let fetch = |peer: &Peer, encoded: &[u8], to: &str| -> (PathBuf, Result<Tree, FileError>) {
        let (part, manifest_path) = (world.root.path().join(to), world.root.path().join(format!("{to}.tree")));
        let tree = TreeRequest {
            manifest: Digest::of(encoded),
            manifest_size: encoded.len() as u64,
            holders: vec![peer.holder()],
            manifest_path: &manifest_path,
            part: &part,
        };
        let fetched = fetch_tree(&tcp_fetcher(), &tree, |digest| world.cluster.grant(digest.into(), now_ms() + 600_000));
        (part, fetched)
    };
    let (peer, encoded) = serve(&made, "good");
    let (part, fetched) = fetch(&peer, &encoded, "to");
    fetched.unwrap();
    assert_eq!(std::fs::read(part.join("sub/large")).unwrap(), bytes(2 * MIB, 2));
    assert!(part.join("sub/empty").is_dir());
    // Again over what is there.
    fetch(&peer, &encoded, "to").1.unwrap();

    std::os::unix::fs::symlink("a", made.join("link")).unwrap();
    let (peer, encoded) = serve(&made, "links");
    let refused = fetch(&peer, &encoded, "links-to").1.unwrap_err().to_string();
    assert!(refused.contains("has a link"), "{refused}");
}
