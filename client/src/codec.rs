//! How values become bytes: one module, so that the codec can be exchanged. Its name travels with every function.
//!
//! Values of a call follow each other without separators: the encoding delimits itself. It is not self-describing, so a type whose
//! `Deserialize` asks the format what comes next (`#[serde(untagged)]`, `#[serde(flatten)]`, `serde_json::Value`) cannot travel;
//! such a type is refused when its function is submitted for the first time.
//!
//! ```
//! let mut bytes = Vec::new();
//! scalable::codec::encode(&(7u32, "seven"), &mut bytes)?;
//! let value: (u32, String) = scalable::codec::decode(&bytes)?;
//! assert_eq!(value, (7, "seven".to_owned()));
//! # Ok::<(), scalable::codec::CodecError>(())
//! ```

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::read::Reader;
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The codec's name on the wire.
pub const NAME: &str = "bincode2";

/// Most bytes one value may claim to have: what a broken length cannot exceed.
const VALUE_BYTES_MAX: usize = 8 << 30;

type Config = Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>>;
const CONFIG: Config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();

/// A value that could not be encoded or decoded: one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(pub String);

impl From<EncodeError> for CodecError {
    fn from(error: EncodeError) -> Self {
        CodecError(match error {
            EncodeError::OtherString(message) => message,
            EncodeError::Other(message) => message.to_owned(),
            other => other.to_string(),
        })
    }
}

impl From<DecodeError> for CodecError {
    fn from(error: DecodeError) -> Self {
        CodecError(match error {
            DecodeError::OtherString(message) => message,
            DecodeError::Other(message) => message.to_owned(),
            other => other.to_string(),
        })
    }
}

struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the encoding of a value.
///
/// # Errors
/// What the value's `Serialize` says; `to` then ends with a part of the value.
#[inline]
pub fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError> {
    Ok(bincode::serde::encode_into_writer(value, Append(to), CONFIG)?)
}

/// Decodes a value that the bytes hold and nothing else.
///
/// # Errors
/// When they are too few, too many, or no encoding of a `T`.
#[inline]
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut rest = bytes;
    let value = decode_first(&mut rest)?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError(format!("{} bytes are left over after the value", rest.len()))) }
}

/// Decodes the value that the bytes begin with and moves on behind it.
///
/// # Errors
/// When they are too few, or no encoding of a `T`.
#[inline]
pub fn decode_first<T: DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, CodecError> {
    let (value, length) = bincode::serde::decode_from_slice(bytes, CONFIG)?;
    *bytes = &bytes[length..];
    Ok(value)
}

/// Decodes a sequence (a `Vec<U>` as a rule) whose elements are encoded one by one.
///
/// # Errors
/// When an element is no encoding of a `U`.
pub fn decode_sequence<'a, T: DeserializeOwned>(elements: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<T, CodecError> {
    let mut length = Vec::with_capacity(9);
    encode(&elements.len(), &mut length)?;
    let mut chain = Chain { first: &length, rest: elements };
    let value = bincode::serde::decode_from_reader(&mut chain, CONFIG)?;
    if chain.skip() { Err(CodecError("bytes are left over after the last element".to_owned())) } else { Ok(value) }
}

/// Slices as one run of bytes.
struct Chain<'l, I> {
    first: &'l [u8],
    rest: I,
}

impl<'l, 'a: 'l, I: Iterator<Item = &'a [u8]>> Chain<'l, I> {
    /// Moves on to the next slice that is not empty; false at the end.
    fn skip(&mut self) -> bool {
        while self.first.is_empty() {
            match self.rest.next() {
                Some(next) => self.first = next,
                None => return false,
            }
        }
        true
    }
}

impl<'l, 'a: 'l, I: Iterator<Item = &'a [u8]>> Reader for &mut Chain<'l, I> {
    fn read(&mut self, mut to: &mut [u8]) -> Result<(), DecodeError> {
        while !to.is_empty() {
            if !self.skip() {
                return Err(DecodeError::UnexpectedEnd { additional: to.len() });
            }
            let length = to.len().min(self.first.len());
            let (filled, left) = to.split_at_mut(length);
            filled.copy_from_slice(&self.first[..length]);
            self.first = &self.first[length..];
            to = left;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_call_follow_each_other() {
        let mut bytes = Vec::new();
        encode(&7u32, &mut bytes).unwrap();
        encode("text", &mut bytes).unwrap();
        encode(&Some(vec![1.5f64]), &mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(decode_first::<u32>(&mut rest).unwrap(), 7);
        assert_eq!(decode_first::<String>(&mut rest).unwrap(), "text");
        assert_eq!(decode_first::<Option<Vec<f64>>>(&mut rest).unwrap(), Some(vec![1.5]));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_sequence_of_results_is_a_vector() {
        let encoded: Vec<Vec<u8>> = (0..300u64)
            .map(|n| {
                let mut bytes = Vec::new();
                encode(&(n, n.to_string()), &mut bytes).unwrap();
                bytes
            })
            .collect();
        let value: Vec<(u64, String)> = decode_sequence(encoded.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(value.len(), 300);
        assert_eq!(value[299], (299, "299".to_owned()));
        assert_eq!(decode_sequence::<Vec<()>>([&[][..]; 5].into_iter()).unwrap().len(), 5);
        assert!(decode_sequence::<Vec<(u64, String)>>([&[][..]; 1].into_iter()).is_err(), "an element that is missing");
        assert!(decode_sequence::<Vec<u8>>([&[1, 2][..]; 1].into_iter()).is_err(), "an element that is too long");
    }

    #[test]
    fn bytes_that_are_no_value_are_an_error() {
        assert!(decode::<u32>(&[]).is_err());
        assert!(decode::<u8>(&[1, 2]).is_err(), "left over");
        assert!(decode::<String>(&[0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err(), "a broken length");
        assert!(decode::<Vec<u64>>(&[0xfc, 0xff, 0xff, 0xff, 0xff]).is_err(), "a broken length");
    }
}
