//! A real lane host, driven frame by frame. This test program is its own host: started with the descriptor in its environment it
//! serves and never comes to its tests.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use scalable_lane::agent::{self, Calls, Greeting, Inbox, Input, Object, Outgoing, Program};
use scalable_lane::frame::{CallHead, FLAG, Frame, ReturnKind, Returns};
use scalable_lane::host::{self, Call, CallError, Function, LaneFuture, Parameter, Registry, Returned, Runtime, serve_if_asked};
use scalable_lane::memory::{Lent, Sealed};
use scalable_lane::shared::Shared;
use scalable_lane::socket::Socket;
use scalable_lane::{FD_VARIABLE, HOST_FD};

type Result = std::result::Result<Returned, CallError>;

const fn function(name: &'static str, call: fn(&mut Call<'_>) -> Result) -> Function {
    Function { name, codec: "raw", signature: || [7; 32], call }
}

fn number(call: &mut Call<'_>) -> std::result::Result<u64, CallError> {
    let (taken, rest) = call.values().split_first_chunk().ok_or_else(|| CallError::Decode("eight bytes were expected".into()))?;
    *call.values() = rest;
    Ok(u64::from_le_bytes(*taken))
}

fn add(call: &mut Call<'_>) -> Result {
    Ok((number(call)? + number(call)?).to_le_bytes().to_vec().into())
}

fn bytes(call: &mut Call<'_>) -> Result {
    Ok(vec![call.index() as u8; number(call)? as usize].into())
}

fn inputs(call: &mut Call<'_>) -> Result {
    let mut said = format!("{} {} {}:", call.run(), call.group(), call.attempt());
    for input in [0, 1] {
        match call.input(input) {
            host::Input::One(bytes) => said.push_str(&format!(" one {}", bytes.len())),
            host::Input::Many(all) => said.push_str(&format!(" many {:?}", all.map(<[u8]>::len).collect::<Vec<_>>())),
        }
    }
    said.push_str(&format!(" {:?} {:?}", call.parameter(0), call.parameter(1)));
    Ok(said.into_bytes().into())
}

/// Blocks until a byte can be read from the named pipe.
fn wait(call: &mut Call<'_>) -> Result {
    let path = String::from_utf8(call.values().to_vec()).unwrap();
    Ok(std::fs::read(path).unwrap().into())
}

fn asynchronous(call: &mut Call<'_>) -> Result {
    let value = number(call)?;
    Ok(Returned::Future(Box::pin(async move { Ok((value * 2).to_le_bytes().to_vec()) })))
}

struct Plain;

impl Runtime for Plain {
    fn block_on(&self, mut future: LaneFuture) -> std::result::Result<Vec<u8>, CallError> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
                return done;
            }
        }
    }
}

const FUNCTIONS: [Function; 7] = [
    function("add", add),
    function("bytes", bytes),
    function("inputs", inputs),
    function("wait", wait),
    function("asynchronous", asynchronous),
    function("panics", |call| panic!("at {}", call.index())),
    function("fails", |_| Err(CallError::Failed("as asked".into()))),
];

extern "C" fn before_main() {
    serve_if_asked(|| Registry::new(FUNCTIONS).with_runtime(|| Ok(Box::new(Plain))));
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

struct Driven {
    child: Child,
    socket: Socket,
    shared: Shared,
    program: Program,
    inbox: Inbox,
    calls: Calls,
    segments: HashMap<u32, OwnedFd>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn started() -> (Child, Socket) {
    let (ours, theirs) = Socket::pair().unwrap();
    let fd = theirs.as_fd().as_raw_fd();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(FD_VARIABLE, HOST_FD.to_string()).stdin(Stdio::null());
    // SAFETY: dup2 is safe to be called after fork; where both are the same number the flag is cleared by hand.
    unsafe {
        command.pre_exec(move || {
            let made = if fd == HOST_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, HOST_FD) };
            if made < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let child = command.spawn().unwrap();
    (child, ours)
}

fn readable(socket: &Socket) {
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, ours.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 60_000) }, 1, "the host says nothing");
}

impl Driven {
    fn start(threads: u32) -> Driven {
        let (child, socket) = started();
        let (mut inbox, mut greeting) = (Inbox::default(), Greeting::default());
        loop {
            readable(&socket);
            let (bytes, fds) = inbox.receive(&socket).unwrap().expect("it greets");
            if greeting.take(bytes, fds.len()).unwrap() {
                break;
            }
        }
        let (program, version) = greeting.end();
        let (shared, fd) = Shared::create(threads, 1024).unwrap();
        agent::welcome(&socket, version, fd.as_fd()).unwrap();
        let mut driven = Driven { child, socket, shared, program, inbox, calls: Calls::default(), segments: HashMap::new() };
        for (at, function) in FUNCTIONS.iter().enumerate() {
            let announced = &driven.program.functions[function.name];
            assert_eq!((announced.codec.as_str(), announced.signature), ("raw", [7; 32]));
            let parameters = [Parameter::Input(1), Parameter::Value];
            let group = agent::group(at as u32, announced.number, "run", function.name, &parameters);
            driven.send(group);
        }
        driven
    }

    fn send(&mut self, outgoing: Outgoing) {
        outgoing.send(&self.socket).unwrap();
    }

    fn call(&mut self, call: u32, function: &str, values: &[u8], inputs: &[Input<'_>]) {
        let group = FUNCTIONS.iter().position(|f| f.name == function).unwrap() as u32;
        self.shared.queue(call);
        let head = CallHead { call, group, index: call, attempt: 3, task_id: 9, values: 0, inputs: 0 };
        for before in self.calls.push_any(head, values, inputs).unwrap() {
            before.send(&self.socket).unwrap();
        }
    }

    fn flush(&mut self, piece: u32) {
        let frame = self.calls.finish(piece);
        self.send(frame);
    }

    fn returns(&mut self, count: usize) -> Vec<(u32, ReturnKind, Vec<u8>)> {
        let mut got = Vec::new();
        while got.len() < count {
            readable(&self.socket);
            let (bytes, fds) = self.inbox.receive(&self.socket).unwrap().expect("it lives");
            let frame = Frame::open(bytes, fds.len()).unwrap();
            let mut returns = Returns::open(frame.body).unwrap();
            let mut fds = fds.drain(..);
            let before = got.len();
            while let Some(one) = returns.next_return().unwrap() {
                let mut payload = one.payload.to_vec();
                if one.kind == ReturnKind::Memory {
                    let mut payload_of = scalable_lane::frame::Cursor::new(one.payload);
                    let (length, number) = (payload_of.u64().unwrap(), payload_of.u32().unwrap());
                    if number & FLAG != 0 {
                        self.segments.insert(number & !FLAG, fds.next().unwrap());
                    }
                    let fd = self.segments[&(number & !FLAG)].try_clone().unwrap();
                    payload = Sealed::from_peer(fd, length).unwrap().map().unwrap().to_vec();
                }
                self.shared.free(one.call);
                got.push((one.call, one.kind, payload));
            }
            assert_eq!(returns.count as usize, got.len() - before);
        }
        got.sort_by_key(|(call, ..)| *call);
        got
    }
}

fn two(a: u64, b: u64) -> Vec<u8> {
    [a.to_le_bytes(), b.to_le_bytes()].concat()
}

#[test]
fn every_end_of_a_call_comes_back() {
    for threads in [1, 3] {
        let mut host = Driven::start(threads);
        assert_eq!((host.program.language.as_str(), host.program.functions.len()), ("rust", FUNCTIONS.len()));
        host.call(0, "add", &two(2, 40), &[]);
        host.call(1, "add", b"short", &[]);
        host.call(2, "panics", b"", &[]);
        host.call(3, "fails", b"", &[]);
        host.call(4, "asynchronous", &21u64.to_le_bytes(), &[]);
        host.call(5, "bytes", &(64u64 << 10).to_le_bytes(), &[]);
        host.call(6, "bytes", &((64u64 << 10) + 1).to_le_bytes(), &[]);
        host.flush(2);
        let returns = host.returns(7);
        let plain: Vec<_> = returns.iter().map(|(call, kind, payload)| (*call, *kind, payload.len())).collect();
        assert_eq!(plain[0], (0, ReturnKind::Value, 8));
        assert_eq!((&returns[0].2, &returns[4].2), (&42u64.to_le_bytes().to_vec(), &42u64.to_le_bytes().to_vec()));
        assert_eq!(
            (returns[1].1, String::from_utf8_lossy(&returns[1].2).as_ref()),
            (ReturnKind::Decode, "eight bytes were expected")
        );
        assert_eq!(returns[2].1, ReturnKind::Panicked);
        let mut cursor = scalable_lane::frame::Cursor::new(&returns[2].2);
        let message = cursor.text().unwrap();
        assert!(message.starts_with("at 2 at ") && message.contains("host.rs"), "{message}");
        assert!(String::from_utf8_lossy(cursor.rest()).contains("host::"), "a backtrace");
        assert_eq!((returns[3].1, returns[3].2.as_slice()), (ReturnKind::Failed, &b"as asked"[..]));
        assert_eq!(plain[5], (5, ReturnKind::Value, 64 << 10));
        assert_eq!(plain[6], (6, ReturnKind::Memory, (64 << 10) + 1));
        assert!(returns[6].2.iter().all(|byte| *byte == 6));
        assert_eq!(host.shared.executing().count(), 0);
    }
}

#[test]
fn inputs_come_inside_beside_and_before_a_call() {
    let mut host = Driven::start(1);
    let memory: Arc<dyn Lent> = Arc::new(Sealed::new(&[1; 100_000]).unwrap());
    let small = Input { many: true, objects: vec![Object::Here(b"ab"), Object::Memory(memory.clone()), Object::Here(b"")] };
    let one = Input { many: false, objects: vec![Object::Memory(memory.clone())] };
    host.call(0, "inputs", b"", &[one.clone(), small]);
    let large = vec![5; 60_000];
    let all =
        Input { many: true, objects: (0..200).flat_map(|_| [Object::Here(&large), Object::Memory(memory.clone())]).collect() };
    host.flush(1);
    let first = host.returns(1);
    let said = String::from_utf8(first[0].2.clone()).unwrap();
    assert_eq!(said, "run inputs 3: one 100000 many [2, 100000, 0] Input(1) Value");
    // More than a socket holds: it is sent while the host takes it.
    let head = CallHead { call: 1, group: 2, index: 0, attempt: 1, task_id: 0, values: 0, inputs: 0 };
    host.shared.queue(1);
    let before = host.calls.push_any(head, b"", &[one, all]).unwrap();
    let frames = before.into_iter().chain([host.calls.finish(1)]);
    for frame in frames {
        while let Err(error) = frame.send(&host.socket) {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            std::thread::yield_now();
        }
    }
    let said = String::from_utf8(host.returns(1).remove(0).2).unwrap();
    assert_eq!(said.matches("60000, 100000").count(), 200, "{said}");
    host.call(2, "inputs", &vec![0; 1 << 20], &[]);
    host.flush(1);
    assert_eq!(host.returns(1)[0].1, ReturnKind::Value, "large values are passed as memory");
}

#[test]
fn small_inputs_are_written_alike_either_way() {
    let head = CallHead { call: 1, group: 2, index: 3, attempt: 1, task_id: 9, values: 0, inputs: 0 };
    let objects: [&[u8]; 3] = [b"ab", b"", b"cde"];
    let inputs = objects.map(|bytes| Input { many: false, objects: vec![Object::Here(bytes)] });
    let (mut one, mut other) = (Calls::default(), Calls::default());
    assert!(one.push_any(head, b"own", &inputs).unwrap().is_empty());
    assert!(other.push_small(head, b"own", objects.into_iter()));
    assert_eq!((other.count(), other.finish(1).bytes), (1, one.finish(1).bytes));
    let large = vec![0; 32 << 10];
    assert!(!other.push_small(head, b"", [large.as_slice()].into_iter()), "it goes before its call");
    assert_eq!(other.count(), 0);
}

#[test]
fn a_segment_is_used_again_when_nobody_reads_it() {
    let mut host = Driven::start(1);
    let call = |host: &mut Driven, call: u32, bytes: u64| {
        host.call(call, "bytes", &bytes.to_le_bytes(), &[]);
        host.flush(1);
        assert_eq!(host.returns(1)[0].2, vec![call as u8; bytes as usize]);
        host.segments.len()
    };
    assert_eq!((call(&mut host, 1, 100_000), call(&mut host, 2, 100_000)), (1, 2), "both are read");
    host.send(agent::segments(&[0]));
    assert_eq!(call(&mut host, 3, 100_010), 2, "one of about that size is free");
    assert_eq!(call(&mut host, 4, 1_000_000), 3);
    host.send(agent::segments(&[0, 1, 2 | FLAG]));
    host.segments.remove(&2);
    assert_eq!(call(&mut host, 5, 1_000_000), 3, "its number is used again, it is not");
}

fn pipe(directory: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let path = directory.path().join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Waits until so many calls are executing: what the shared memory is for.
fn executing(host: &Driven, count: usize) -> Vec<u32> {
    loop {
        let calls: Vec<u32> = host.shared.executing().collect();
        if calls.len() == count {
            return calls;
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_was_not_begun_is_taken_back_while_its_thread_is_busy() {
    let directory = tempfile::tempdir().unwrap();
    let path = pipe(&directory, "gate");
    let mut host = Driven::start(1);
    host.call(0, "wait", path.to_str().unwrap().as_bytes(), &[]);
    host.call(1, "add", &two(1, 1), &[]);
    host.call(2, "add", &two(1, 2), &[]);
    host.flush(1);
    host.call(3, "add", &two(1, 3), &[]);
    host.flush(1);
    assert_eq!(executing(&host, 1), [0]);
    assert!(!host.shared.take_back(0), "it has begun");
    assert!(host.shared.take_back(1) && host.shared.take_back(3));
    std::fs::write(path, b"go").unwrap();
    let kinds: Vec<ReturnKind> = host.returns(4).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(kinds, [ReturnKind::Value, ReturnKind::Dropped, ReturnKind::Value, ReturnKind::Dropped]);
}

#[test]
fn results_do_not_wait_for_a_long_call_behind_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = pipe(&directory, "gate");
    let mut host = Driven::start(1);
    host.call(0, "add", &two(1, 1), &[]);
    host.call(1, "wait", path.to_str().unwrap().as_bytes(), &[]);
    host.flush(2);
    assert_eq!(host.returns(1)[0].0, 0);
    std::fs::write(path, b"go").unwrap();
    assert_eq!(host.returns(1)[0].0, 1);
}

#[test]
fn threads_take_from_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = pipe(&directory, "gate");
    let mut host = Driven::start(2);
    host.call(0, "wait", path.to_str().unwrap().as_bytes(), &[]);
    for call in 1..100 {
        host.call(call, "add", &two(1, 1), &[]);
    }
    // One frame, one reader: the other thread must take what is behind the one that waits.
    host.flush(1);
    let first = host.returns(99);
    assert_eq!((first[0].0, first[98].0), (1, 99));
    std::fs::write(path, b"go").unwrap();
    assert_eq!(host.returns(1)[0].0, 0);
}

#[test]
fn only_so_many_threads_execute_as_there_are_slots() {
    let directory = tempfile::tempdir().unwrap();
    let gates = [pipe(&directory, "a"), pipe(&directory, "b")];
    let mut host = Driven::start(2);
    host.send(agent::slots(1));
    for (call, gate) in gates.iter().enumerate() {
        host.call(call as u32, "wait", gate.to_str().unwrap().as_bytes(), &[]);
        host.flush(1);
    }
    assert_eq!(executing(&host, 1), [0]);
    std::fs::write(&gates[0], b"go").unwrap();
    assert_eq!(host.returns(1)[0].0, 0);
    host.call(2, "wait", gates[0].to_str().unwrap().as_bytes(), &[]);
    host.flush(1);
    host.send(agent::slots(2));
    let mut both = executing(&host, 2);
    both.sort_unstable();
    assert_eq!(both, [1, 2], "a second thread executes as soon as it may");
    for gate in &gates {
        std::fs::write(gate, b"go").unwrap();
    }
    host.returns(2);
}

#[test]
fn a_host_ends_when_it_is_told_or_left_alone() {
    let mut host = Driven::start(2);
    host.call(0, "add", &two(1, 1), &[]);
    host.flush(1);
    host.send(agent::stop());
    assert_eq!(host.returns(1)[0].1, ReturnKind::Value);
    assert_eq!(host.child.wait().unwrap().code(), Some(0));
    let (mut child, socket) = started();
    drop(socket);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_host_that_is_told_nonsense_says_so() {
    let mut host = Driven::start(1);
    host.send(Outgoing { bytes: vec![8, 0, 0, 0, 99, 0, 0, 0], memory: Vec::new() });
    assert_eq!(host.child.wait().unwrap().code(), Some(70));
}

#[test]
fn a_crash_leaves_behind_what_it_executed() {
    let directory = tempfile::tempdir().unwrap();
    let path = pipe(&directory, "gate");
    let mut host = Driven::start(1);
    host.call(5, "wait", path.to_str().unwrap().as_bytes(), &[]);
    host.call(6, "add", &two(1, 1), &[]);
    host.flush(1);
    executing(&host, 1);
    host.child.kill().unwrap();
    host.child.wait().unwrap();
    assert_eq!(host.shared.executing().collect::<Vec<_>>(), [5]);
    assert!(host.inbox.receive(&host.socket).unwrap().is_none());
}
