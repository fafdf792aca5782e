//! A token: compared in constant time, never shown.

use crate::TlsError;

/// Fewest characters of a token: shorter ones are guessable.
const CHARS_MIN: usize = 32;
/// Bytes of randomness in a new one.
const RANDOM_BYTES: usize = 32;

/// A secret that opens something.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// A new one of 64 hexadecimal digits.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Secret, TlsError> {
        use std::fmt::Write as _;
        let mut raw = [0_u8; RANDOM_BYTES];
        getrandom::fill(&mut raw).map_err(|error| TlsError::Random(error.to_string()))?;
        Ok(Secret(raw.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })))
    }

    /// One that was read somewhere; white space around it is not part of it.
    ///
    /// # Errors
    /// One sentence, when it is shorter than 32 characters or cannot be a header's value.
    pub fn parse(text: &str) -> Result<Secret, String> {
        let text = text.trim();
        if text.len() < CHARS_MIN {
            return Err(format!("holds {} characters; a token has at least {CHARS_MIN}", text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("holds something else than letters, digits and signs".to_owned());
        }
        Ok(Secret(text.to_owned()))
    }

    /// The secret itself, to be sent or stored.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True when `shown` is the secret; takes the same time wherever they differ.
    pub fn matches(&self, shown: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), shown.as_bytes());
        let mut difference = ours.len() ^ theirs.len();
        for (at, byte) in ours.iter().enumerate() {
            difference |= usize::from(byte ^ theirs.get(at).copied().unwrap_or(0));
        }
        difference == 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_matches() {
        let secret = Secret::random().unwrap();
        let text = secret.expose().to_owned();
        assert!(secret.matches(&text) && Secret::parse(&format!("{text}\n")).unwrap() == secret);
        for other in ["", &text[1..], &format!("{text}0"), &"0".repeat(text.len())] {
            assert!(!secret.matches(other), "{other}");
        }
        assert!(!format!("{secret:?}").contains(&text[..8]));
        for bad in ["short", &"ä".repeat(40), &format!("{} {}", "a".repeat(20), "b".repeat(20))] {
            assert!(Secret::parse(bad).is_err(), "{bad}");
        }
    }
}
