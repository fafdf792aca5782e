//! This test program as a lane host: started with the lane protocol's descriptor in its environment it serves these functions and
//! never comes to its tests.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::path::Path;

use scalable_lane::host::{Call, CallError, Function, Input, LaneFuture, Registry, Returned, Runtime, serve_if_asked};

type Result = std::result::Result<Returned, CallError>;

/// Types of every function here.
pub const SIGNATURE: [u8; 32] = [3; 32];

const fn function(name: &'static str, call: fn(&mut Call<'_>) -> Result) -> Function {
    Function { name, codec: "raw", signature: || SIGNATURE, call }
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

/// Makes the file it is given, then blocks until that is gone.
fn wait(call: &mut Call<'_>) -> Result {
    let path = String::from_utf8_lossy(call.values()).into_owned();
    std::fs::write(&path, std::process::id().to_string()).expect("written");
    while Path::new(&path).exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Ok(std::process::id().to_le_bytes().to_vec().into())
}

fn length(call: &mut Call<'_>) -> Result {
    let count = match call.input(0) {
        Input::One(bytes) => bytes.len(),
        Input::Many(all) => all.map(<[u8]>::len).sum(),
    };
    Ok((count as u64).to_le_bytes().to_vec().into())
}

fn spin(call: &mut Call<'_>) -> Result {
    let path = String::from_utf8_lossy(call.values()).into_owned();
    if !path.is_empty() {
        std::fs::write(&path, "").expect("written");
    }
    loop {
        black_box(call.index());
    }
}

fn looks(call: &mut Call<'_>) -> Result {
    let path = String::from_utf8_lossy(call.values()).into_owned();
    std::fs::write(&path, "").expect("written");
    while !call.cancelled() {
        std::thread::yield_now();
    }
    std::fs::remove_file(&path).expect("removed");
    Ok(Vec::new().into())
}

fn leak(_: &mut Call<'_>) -> Result {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![1; 1 << 20]);
        black_box(&held);
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn segfault(_: &mut Call<'_>) -> Result {
    // SAFETY: none: this is what it is for.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
    Ok(Vec::new().into())
}

fn asynchronous(call: &mut Call<'_>) -> Result {
    let value = number(call)?;
    Ok(Returned::Future(Box::pin(async move {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        Ok((value * 2).to_le_bytes().to_vec())
    })))
}

struct Tokio(tokio::runtime::Runtime);

impl Runtime for Tokio {
    fn block_on(&self, future: LaneFuture) -> std::result::Result<Vec<u8>, CallError> {
        self.0.block_on(future)
    }
}

const FUNCTIONS: [Function; 14] = [
    function("nothing", |_| Ok(Vec::new().into())),
    function("add", add),
    function("bytes", bytes),
    function("wait", wait),
    function("length", length),
    function("spin", spin),
    function("looks", looks),
    function("leak", leak),
    function("segfault", segfault),
    function("asynchronous", asynchronous),
    function("panics", |call| panic!("{} is wrong", call.index())),
    function("fails", |_| Err(CallError::Failed("as asked".into()))),
    function("exits", |_| std::process::exit(3)),
    function("aborts", |_| {
        eprintln!("last words");
        std::process::abort()
    }),
];

extern "C" fn before_main() {
    serve_if_asked(|| {
        Registry::new(FUNCTIONS).with_runtime(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            Ok(Box::new(Tokio(runtime.map_err(|error| error.to_string())?)))
        })
    });
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;
