//! Memory that runs short and disks that do.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::FileExt;

use common::*;
use scalable_store::*;

const MIB: u64 = 1 << 20;

fn put(store: &Store, index: u32, len: u64) {
    let mut writer = store.pool().take(len as usize).unwrap();
    writer.as_mut_slice().copy_from_slice(&bytes(len as usize, u64::from(index)));
    drop(store.insert(id(index), writer.freeze(), Keep::Origin).unwrap());
}

fn on_disk(store: &Store, index: u32) -> bool {
    matches!(store.get(id(index)), Lookup::OnDisk)
}

#[test]
fn the_least_recently_used_are_spilled_and_come_back() {
    let world = World::new();
    let store = world.store("s", 10 * MIB);
    for index in 0..6 {
        put(&store, index, MIB);
    }
    assert_eq!(store.usage().spilled_bytes, 0, "60 % are allowed");
    // 0 has been used last, 1 is in use.
    let pinned = store.load(id(1)).wait().unwrap();
    drop(store.load(id(0)).wait().unwrap());
    put(&store, 6, MIB);
    eventually("down to 50 %", || store.usage().memory_bytes == 5 * MIB);
    assert_eq!((0..7).filter(|i| on_disk(&store, *i)).collect::<Vec<_>>(), [2, 3]);
    let usage = store.usage();
    assert_eq!((usage.spilled_bytes, usage.pinned_bytes, usage.objects), (2 * MIB, MIB, 7));
    assert!((usage.memory_fraction() - 0.5).abs() < 1e-9);
    drop(pinned);

    let back = store.load(id(2)).wait().unwrap();
    assert_eq!(back.bytes().unwrap(), bytes(MIB as usize, 2));
    assert!(!on_disk(&store, 2));
    assert!(store.usage().spilled_bytes <= 2 * MIB, "at most one other has made room for it");
    drop(back);
    for index in 0..7 {
        assert!(store.drop_object(id(index)) && !store.drop_object(id(index)));
        assert_eq!(store.load(id(index)).wait().unwrap_err(), LoadError::Gone);
    }
    // One that was being written when it was dropped is let go of when that is done.
    let held = || {
        let usage = store.usage();
        (usage.memory_bytes, usage.spilled_bytes, usage.objects)
    };
    eventually("nothing is held", || held() == (0, 0, 0));
    let directory = world.root.path().join("s");
    eventually("only the lock is left", || std::fs::read_dir(&directory).unwrap().count() == 1);
    drop(store);
    assert!(!directory.exists());
}

#[test]
fn replicas_are_forgotten_instead() {
    let world = World::new();
    let store = world.store("s", 10 * MIB);
    put(&store, 0, MIB);
    for index in 1..8 {
        let content = store.pool().take(MIB as usize).unwrap().freeze();
        drop(store.insert(id(index), content, Keep::Replica).unwrap());
    }
    // Down to 50 %, or with the last one, which came later, to what is allowed.
    eventually("no more than is allowed", || store.usage().memory_bytes <= 6 * MIB && on_disk(&store, 0));
    assert!(matches!(store.get(id(1)), Lookup::Gone));
    assert!(matches!(store.get(id(7)), Lookup::Here(_)));
}

#[test]
fn replicas_that_are_to_be_kept_are_spilled_like_what_was_made_here() {
    let world = World::new();
    let store = world.store("s", 10 * MIB);
    for index in 0..2 {
        let content = store.pool().take(MIB as usize).unwrap().freeze();
        drop(store.insert(id(index), content, Keep::Replica).unwrap());
    }
    assert!(store.keep(id(1)) && !store.keep(id(9)));
    for index in 2..8 {
        put(&store, index, MIB);
    }
    eventually("no more than is allowed", || store.usage().memory_bytes <= 6 * MIB && on_disk(&store, 1));
    assert!(matches!(store.get(id(0)), Lookup::Gone));
}

#[test]
fn a_full_disk_pauses_and_loses_nothing() {
    let world = World::new();
    let options = StoreOptions { disk_bytes_max: 3 * MIB, ..StoreOptions::new(world.root.path().join("s"), 10 * MIB) };
    let store = Store::open(options).unwrap();
    let mut pressure = store.pressure();
    for index in 0..12 {
        put(&store, index, MIB);
    }
    eventually("the limit is told", || store.usage().trouble.is_some());
    let usage = store.usage();
    assert_eq!((usage.memory_bytes, usage.spilled_bytes, usage.objects), (9 * MIB, 3 * MIB, 12));
    let seen = pressure.borrow_and_update().clone();
    assert!(seen.paused && seen.trouble.unwrap().contains("limit of 3145728"));
    // Nothing is lost...
    for index in 0..12 {
        assert_eq!(store.load(id(index)).wait().unwrap().bytes().unwrap(), bytes(MIB as usize, u64::from(index)));
    }
    // ...and when objects are released it goes on.
    for index in 0..7 {
        store.drop_object(id(index));
    }
    eventually("it is over", || store.usage().trouble.is_none() && !store.pressure().borrow().paused);
}

/// A disk that is really full for this process: files cannot grow. In a process of its own, which is limited as a whole.
#[test]
fn writes_that_fail_keep_the_object_in_memory() {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "limited_process", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(status.status.success(), "{}{}", String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&status.stderr));
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
}

#[test]
#[ignore = "started by the test before, in a process of its own"]
fn limited_process() {
    let world = World::new();
    let store = world.store("s", 10 * MIB);
    for index in 0..7 {
        // On the heap: memory files are limited too.
        let content = Content::from_bytes(bytes(MIB as usize, u64::from(index)).into());
        if index == 6 {
            // SAFETY: the calls touch only this process, whose other threads wait.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let limit = libc::rlimit { rlim_cur: MIB / 2, rlim_max: MIB / 2 };
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
            }
        }
        drop(store.insert(id(index), content, Keep::Origin).unwrap());
    }
    eventually("the failure is told", || store.usage().trouble.is_some_and(|why| why.contains("cannot write to")));
    assert_eq!(std::fs::read_dir(world.root.path().join("s")).unwrap().count(), 1, "no half file is left");
    for index in 0..7 {
        assert_eq!(store.load(id(index)).wait().unwrap().bytes().unwrap(), bytes(MIB as usize, u64::from(index)));
    }
}

#[test]
fn damage_on_disk_is_found_and_the_object_is_gone_then() {
    let world = World::new();
    let store = world.store("s", 4 * MIB);
    put(&store, 1, 2 * MIB);
    put(&store, 2, 2 * MIB);
    // Not asked of the objects themselves: that would be a use of them.
    eventually("one is spilled", || store.usage().spilled_bytes == 2 * MIB && store.usage().memory_bytes == 2 * MIB);
    assert!(on_disk(&store, 1));
    let spilled = std::fs::read_dir(world.root.path().join("s")).unwrap().map(|entry| entry.unwrap().path());
    let spilled = spilled.into_iter().find(|path| path.extension().is_some()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&spilled).unwrap().write_all_at(b"damage", 1_500_000).unwrap();
    let peer = PeerServer::start(ServerOptions::new(([127, 0, 0, 1], 0).into()), store.clone()).unwrap();
    peer.set_key(world.cluster.clone());
    // A peer finds it by the checksum that was taken before it was written...
    let error = tcp_fetcher().fetch(world.request(id(1), 2 * MIB, &[holder(peer.address())])).wait().unwrap_err();
    assert!(error.to_string().contains("damaged at byte 1048576"), "{error}");
    // ...and so does the store.
    let error = store.load(id(1)).wait().unwrap_err();
    assert!(matches!(&error, LoadError::Damaged(why) if why.contains("damaged at byte 1048576")), "{error}");
    assert_eq!(store.load(id(1)).wait().unwrap_err(), LoadError::Gone);
    // Room had been made for what was to come back.
    store.drop_object(id(2));
    eventually("nothing is left", || store.usage().spilled_bytes == 0 && store.usage().memory_bytes == 0);
}

#[test]
fn everything_at_once_ends_with_empty_accounts() {
    let world = World::new();
    let store = world.store("s", 8 * MIB);
    let threads: Vec<_> = (0..4u32)
        .map(|thread| {
            let store = store.clone();
            std::thread::spawn(move || {
                for round in 0..60u32 {
                    let index = thread * 1000 + round;
                    put(&store, index, 200_000 + u64::from(round) * 1000);
                    let back = thread * 1000 + round.saturating_sub(20);
                    let content = store.load(id(back)).wait().unwrap();
                    assert_eq!(content.bytes().unwrap(), bytes(content.len() as usize, u64::from(back)));
                    if round >= 20 {
                        assert!(store.drop_object(id(back)));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(store.drop_all(|key| matches!(key, Key::Object(id) if id.run == 1)), 80);
    eventually("all is gone", || store.usage().memory_bytes == 0 && store.usage().spilled_bytes == 0);
    assert_eq!(std::fs::read_dir(world.root.path().join("s")).unwrap().count(), 1);
}

#[test]
fn limits_are_told() {
    let world = World::new();
    let store = Store::open(StoreOptions { objects_max: 2, ..StoreOptions::new(world.root.path().join("s"), 10 * MIB) }).unwrap();
    put(&store, 1, 100);
    put(&store, 2, 100);
    let again = store.insert(id(2), Content::from_bytes(vec![1].into()), Keep::Origin);
    assert!(again.is_ok(), "what is there is not one more");
    let error = store.insert(id(3), Content::from_bytes(vec![1].into()), Keep::Origin).unwrap_err();
    assert!(error.to_string().contains("2 objects"), "{error}");
    let other = Store::open(StoreOptions::new(world.root.path().join("s"), 10 * MIB)).unwrap_err();
    assert!(other.to_string().contains("another process has it"), "{other}");
}
