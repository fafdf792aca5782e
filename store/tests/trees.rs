//! Directories as objects: the same again elsewhere, and nothing outside.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::*;
use proptest::prelude::*;
use scalable_store::*;

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn example(root: &Path) {
    fs::create_dir_all(root.join("a/b/empty")).unwrap();
    write(&root.join("a/data"), &bytes(3_000_000, 1), 0o640);
    write(&root.join("a/b/run"), b"#!/bin/sh\n", 0o755);
    write(&root.join("a-b"), b"", 0o444);
    write(&root.join("same"), b"#!/bin/sh\n", 0o644);
    symlink("../data", root.join("a/b/link")).unwrap();
    symlink("a/b", root.join("short")).unwrap();
    fs::set_permissions(root.join("a/b/empty"), fs::Permissions::from_mode(0o500)).unwrap();
}

#[test]
fn a_tree_travels_and_is_the_same_elsewhere() {
    let world = World::new();
    let from = world.root.path().join("from");
    fs::create_dir(&from).unwrap();
    example(&from);
    let tree = Tree::scan(&from).unwrap();
    let manifest = tree.encode();
    assert_eq!(Tree::decode(&manifest).unwrap(), tree);
    assert_eq!((tree.entries().count(), tree.files().len(), tree.size()), (9, 3, 3_000_020));

    // Its files and its manifest are served by their digests...
    let peer = world.peer("worker");
    let tree_digest = Digest::of(&manifest);
    drop(peer.store.insert(tree_digest, Content::from_bytes(manifest.clone().into()), Keep::Origin).unwrap());
    for (path, node) in tree.entries() {
        if let TreeNode::File { size, digest, .. } = node {
            let path = from.join(std::str::from_utf8(path).unwrap());
            drop(peer.store.insert_file(*digest, fs::File::open(path).unwrap(), *size).unwrap());
        }
    }
    // ...and fetched by another, which has the tree's digest only.
    let to = world.root.path().join("to");
    fs::create_dir(&to).unwrap();
    let fetcher = tcp_fetcher();
    let get = |digest: Digest, size: u64| fetcher.fetch(world.request(digest, size, &[peer.holder()])).wait();
    let fetched = Tree::decode(&get(tree_digest, manifest.len() as u64).unwrap().bytes().unwrap()).unwrap();
    fetched.unpack(&to, |digest, size| get(digest, size).map_err(std::io::Error::other)).unwrap();
    assert_eq!(Tree::scan(&to).unwrap().encode(), manifest);
    assert_eq!(fs::read(to.join("a/b/link")).unwrap(), bytes(3_000_000, 1));
}

#[test]
fn links_that_leave_the_tree_and_special_files_are_refused() {
    for (what, place, target) in [
        ("absolute", "link", "/etc/passwd"),
        ("up", "link", "../x"),
        ("up after down", "a/link", "../../x"),
        ("down and up", "link", "a/../../x"),
        ("through a link", "link", "a/../x"),
    ] {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        symlink(target, root.path().join(place)).unwrap();
        let error = Tree::scan(root.path()).unwrap_err();
        assert!(matches!(&error, TreeError::LinkOut { .. }) && error.to_string().contains(target), "{what}: {error}");
    }
    let root = tempfile::tempdir().unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    assert!(matches!(Tree::scan(root.path()), Err(TreeError::Special(name)) if name == "socket"));
    assert!(matches!(Tree::scan(&root.path().join("none")), Err(TreeError::Io { .. })));
}

fn manifest(entries: &[(u8, &str, &str)]) -> Vec<u8> {
    let mut out = b"SCALTREE\x01\0".to_vec();
    for (kind, path, target) in entries {
        out.push(*kind);
        out.extend(if *kind == 2 { 0o777u16 } else { 0o755 }.to_le_bytes());
        out.extend((path.len() as u16).to_le_bytes());
        out.extend(path.bytes());
        match kind {
            1 => out.extend([0; 40]),
            2 => {
                out.extend((target.len() as u16).to_le_bytes());
                out.extend(target.bytes());
            }
            _ => {}
        }
    }
    out
}

#[test]
fn manifests_that_reach_outside_are_refused() {
    assert!(Tree::decode(&manifest(&[(0, "a", ""), (1, "a/b", ""), (2, "c", "a/b")])).is_ok());
    for (what, entries) in [
        ("absolute", vec![(1, "/etc/x", "")]),
        ("up", vec![(1, "../x", "")]),
        ("up inside", vec![(0, "a", ""), (1, "a/../x", "")]),
        ("empty part", vec![(0, "a", ""), (1, "a//x", "")]),
        ("empty", vec![(1, "", "")]),
        ("dot", vec![(1, "./x", "")]),
        ("zero byte", vec![(1, "a\0b", "")]),
        ("below a file", vec![(1, "a", ""), (1, "a/b", "")]),
        ("below a link", vec![(0, "a", ""), (2, "b", "a"), (1, "b/c", "")]),
        ("below nothing", vec![(1, "a/b", "")]),
        ("twice", vec![(1, "a", ""), (1, "a", "")]),
        ("out of order", vec![(1, "b", ""), (1, "a", "")]),
        ("link out", vec![(2, "a", "../x")]),
        ("link absolute", vec![(2, "a", "/x")]),
        ("unknown kind", vec![(7, "a", "")]),
    ] {
        assert!(Tree::decode(&manifest(&entries)).is_err(), "{what}");
    }
    let whole = manifest(&[(0, "a", ""), (1, "a/b", "")]);
    // After the header and after the first entry it is a smaller tree.
    (0..whole.len()).filter(|end| ![10, 16].contains(end)).for_each(|end| {
        assert!(Tree::decode(&whole[..end]).is_err(), "cut at {end}");
    });
}

#[test]
fn unpacking_follows_no_link_and_replaces_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (inside, outside) = (root.path().join("inside"), root.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let content = Content::from_bytes(Vec::new().into());
    let mut plain = manifest(&[(0, "a", ""), (1, "a/x", "")]);
    let at = plain.len() - 32;
    plain[at..].copy_from_slice(&Digest::of(b"").0);
    let tree = Tree::decode(&plain).unwrap();
    // Somebody has put a link where the tree has a directory.
    symlink(&outside, inside.join("a")).unwrap();
    assert!(tree.unpack(&inside, |_, _| Ok(content.clone())).is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    fs::remove_file(inside.join("a")).unwrap();
    tree.unpack(&inside, |_, _| Ok(content.clone())).unwrap();
    assert!(tree.unpack(&inside, |_, _| Ok(content.clone())).is_err(), "it is there");

    let wrong = Tree::decode(&manifest(&[(1, "x", "")])).unwrap();
    assert!(matches!(wrong.unpack(&inside, |_, _| Ok(content.clone())), Err(TreeError::Differs(name)) if name == "x"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(files in proptest::collection::btree_map("[a-c.]{1,3}(/[a-c-]{1,2}){0,2}", any::<u8>(), 0..12)) {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        let mut contents = BTreeMap::new();
        for (path, seed) in &files {
            let path = from.join(path);
            // Some name a directory of another one, or are `.` or `..`.
            if path.parent().is_some_and(|parent| parent.starts_with(&from) && fs::create_dir_all(parent).is_ok())
                && path.components().all(|part| part.as_os_str() != "..")
            {
                let content = vec![*seed; usize::from(*seed)];
                if fs::write(&path, &content).is_ok() {
                    contents.insert(Digest::of(&content), content);
                }
            }
        }
        let tree = Tree::scan(&from).unwrap();
        let decoded = Tree::decode(&tree.encode()).unwrap();
        prop_assert_eq!(&decoded, &tree);
        decoded.unpack(&to, |digest, _| Ok(Content::from_bytes(contents[&digest].clone().into()))).unwrap();
        prop_assert_eq!(Tree::scan(&to).unwrap(), tree);
    }

    #[test]
    fn any_bytes_are_a_tree_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(tree) = Tree::decode(&[b"SCALTREE\x01\0", &bytes[..]].concat()) {
            prop_assert_eq!(&tree.encode()[10..], &bytes[..]);
        }
    }
}
