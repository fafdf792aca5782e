//! What a user's program runs when the agent has started it as a lane host: it tells which functions it has, then takes calls,
//! executes them on its threads and sends back what became of them, until its agent says stop or is gone.
//!
//! A program asks first in `main`: [`serve_if_asked`] returns when the program was not started as a lane host.

mod call;
mod input;
mod panic;
mod threads;

use std::io;
use std::os::fd::RawFd;
use std::process::exit;

pub use call::{
    Call, CallError, Function, GroupOfCalls, Input, InputBytes, LaneFuture, Objects, Parameter, Place, Registry, Returned,
    Runtime, RuntimeFactory,
};
pub(crate) use input::{HERE, IN_MEMORY};
pub use panic::{Outcome, execute};

use crate::frame::{self, Builder, Frame};
use crate::shared::Shared;
use crate::socket::{Socket, Wait};
use crate::{FD_VARIABLE, FRAME_BYTES_MAX, VERSIONS};

/// Exit code of a host that its agent does not understand.
const EXIT_PROTOCOL: i32 = 70;

/// Serves and never returns when this program was started as a lane host; else returns at once and costs nothing. `registry` is
/// made only when it serves. To be called before the program starts threads: it takes the variable out of the environment.
pub fn serve_if_asked(registry: impl FnOnce() -> Registry) {
    let Some(value) = std::env::var_os(FD_VARIABLE) else { return };
    let fd = value.to_str().and_then(|text| text.parse::<RawFd>().ok());
    forget_variable();
    match fd {
        Some(fd) => serve(registry(), fd),
        None => fail(&format!("{FD_VARIABLE}={} names no descriptor", value.display())),
    }
}

#[allow(unsafe_code)]
fn forget_variable() {
    // SAFETY: the program has no other thread yet, as `serve_if_asked` asks for. What the user's functions start must not take
    // itself for a lane host.
    unsafe { std::env::remove_var(FD_VARIABLE) };
}

/// Serves on this descriptor until the agent says stop or is gone, then ends the process.
pub fn serve(registry: Registry, fd: RawFd) -> ! {
    let (socket, shared) = match Socket::inherited(fd).map_err(|e| e.to_string()).and_then(|s| greet(&registry, s)) {
        Ok(Some(greeted)) => greeted,
        // The agent has closed the door: it does not want this program, and says why to who asked.
        Ok(None) => exit(0),
        Err(why) => fail(&why),
    };
    match threads::run(registry, socket, shared) {
        Ok(()) => exit(0),
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ! {
    eprintln!("lane host: {why}");
    exit(EXIT_PROTOCOL)
}

fn greet(registry: &Registry, socket: Socket) -> Result<Option<(Socket, Shared)>, String> {
    let words = |error: io::Error| format!("the agent cannot be reached: {error}");
    let mut builder = Builder::new();
    builder.begin(frame::HELLO);
    builder.u16(*VERSIONS.start());
    builder.u16(*VERSIONS.end());
    builder.u32(registry.functions().len() as u32);
    builder.text("rust");
    builder.text(env!("CARGO_PKG_VERSION"));
    let mut said = socket.send(builder.finish(0), &[], Wait::Yes);
    let mut functions = registry.functions().iter().peekable();
    while said.is_ok() && functions.peek().is_some() {
        builder.begin(frame::FUNCTIONS);
        // At least one in each frame: names are cut where they are written.
        while let Some(function) = functions.next_if(|f| builder.len() == frame::HEAD_BYTES || builder.has_room(text_bytes(f))) {
            builder.bytes(&(function.signature)());
            builder.text(function.codec);
            builder.text(function.name);
        }
        said = socket.send(builder.finish(0), &[], Wait::Yes);
    }
    // An agent that refuses the version may have closed before everything was said: what it left to read decides.
    let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
    let count = socket.receive(&mut buffer, &mut fds, Wait::Yes).map_err(words)?;
    if count == 0 {
        return Ok(None);
    }
    said.map_err(words)?;
    let mut welcome = Frame::open(&buffer[..count], fds.len()).map_err(|e| e.to_string())?;
    let (version, fd) = match (welcome.kind, fds.pop()) {
        (frame::WELCOME, Some(fd)) => (welcome.body.u16().map_err(|e| e.to_string())?, fd),
        _ => return Err("the agent does not begin with a welcome".to_owned()),
    };
    if !VERSIONS.contains(&version) {
        return Err(format!("the agent wants version {version} of the lane protocol, which this program does not speak"));
    }
    Ok(Some((socket, Shared::open(fd).map_err(|e| e.to_string())?)))
}

fn text_bytes(function: &Function) -> usize {
    32 + 2 + function.codec.len() + 2 + function.name.len()
}
