//! Values that are brought to the workers once, to be read by many tasks.
//!
//! A scattered value is the result of a task that gives back what it was given: small pieces as they are, and for a value of more
//! than 1 MiB one task that joins its pieces. So it has what every result has: it is kept while somebody needs it, it goes from worker
//! to worker, and it is made again when the worker is lost.

use scalable_lane::host::{Call, CallError, Function, Input, Returned};

use crate::arguments::{ARGUMENT_BYTES_MAX, Kind, Shape, Source};
use crate::handle::Handle;
use crate::macro_support::Registered;
use crate::options::{Isolation, Options};
use crate::outbox::Elements;
use crate::session::{Session, refused, unencodable};
use crate::{Error, Value, codec, template};

/// Largest value that can be scattered: the scheduler keeps its pieces while the value is needed.
pub const SCATTER_BYTES_MAX: usize = 64 << 20;

/// The same in every program: these functions know nothing of types.
const SIGNATURE: [u8; 32] = *b"scalable: bytes in, bytes out, 1";

const PIECE: Function = Function { name: "scalable::scatter::piece", codec: codec::NAME, signature: || SIGNATURE, call: piece };
const JOIN: Function = Function { name: "scalable::scatter::join", codec: codec::NAME, signature: || SIGNATURE, call: join };

inventory::submit! { Registered(PIECE) }
inventory::submit! { Registered(JOIN) }

fn piece(call: &mut Call<'_>) -> Result<Returned, CallError> {
    Ok(call.values().to_vec().into())
}

fn join(call: &mut Call<'_>) -> Result<Returned, CallError> {
    match call.input(0) {
        Input::One(piece) => Ok(piece.to_vec().into()),
        Input::Many(pieces) => Ok(pieces.collect::<Vec<&[u8]>>().concat().into()),
    }
}

impl Session {
    /// Brings a value to the workers and gives its handle, to be passed to many tasks: it travels to each worker once.
    ///
    /// # Errors
    /// [`Error::Refused`] when it cannot be encoded or takes more than [`SCATTER_BYTES_MAX`]; as [`Session::submit`].
    ///
    /// ```
    /// # #[scalable::task] fn total(weights: Vec<f64>, scale: f64) -> f64 { scale * weights.iter().sum::<f64>() }
    /// # async fn example(session: scalable::Session) -> Result<(), scalable::Error> {
    /// let weights = session.scatter(&vec![0.5; 100_000]).await?;
    /// let totals = session.map(total, (&weights, [1.0, 2.0, 3.0])).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn scatter<T: Value>(&self, value: &T) -> Result<Handle<T>, Error> {
        let mut bytes = Vec::new();
        codec::encode(value, &mut bytes).map_err(|error| unencodable(&error))?;
        if bytes.len() > SCATTER_BYTES_MAX {
            let message = format!("the value takes {} bytes, {SCATTER_BYTES_MAX} can be scattered", bytes.len());
            return Err(refused("SCATTER_TOO_LARGE", message, "let a task make it or read it from a file, and pass its handle"));
        }
        let options = Options::new().name("scatter").cpus("1m").isolation(Isolation::Thread);
        let spec = self.function_spec(&PIECE, SIGNATURE, Shape(0), &options).await?;
        let pieces = self.add_group(spec, false);
        let mut left = bytes.as_slice();
        let count = left.len().div_ceil(ARGUMENT_BYTES_MAX).max(1);
        for nth in 1..=count {
            let (piece, rest) = left.split_at(left.len().min(ARGUMENT_BYTES_MAX));
            left = rest;
            let mut elements = Elements::new(Shape(0), 0);
            elements.args = piece.to_vec();
            elements.push(&[]);
            self.append_elements(&pieces, &mut Some(elements), nth == count).await?;
            pieces.appended(1, nth == count);
        }
        if count == 1 {
            return Ok(Handle::new(pieces, 0, true));
        }
        let shape = Shape(0).with(0, Kind::All);
        let mut spec = self.function_spec(&JOIN, SIGNATURE, shape, &options).await?;
        let source = Source { session: self.shared().number, group: pieces.ordinal(), index: 0 };
        template::fix(&mut spec, shape, u32::MAX, &[source]);
        let joined = self.add_group(spec, false);
        let mut elements = Elements::new(shape, u32::MAX);
        elements.push(&[]);
        self.append_elements(&joined, &mut Some(elements), true).await?;
        Ok(Handle::new(joined, 0, true))
    }
}
