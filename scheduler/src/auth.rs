//! The token of every call: compared in constant time, never shown.

use std::io;
use std::path::Path;

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Fewest characters of a token: shorter ones are guessable.
const TOKEN_CHARS_MIN: usize = 32;

/// The secret that every peer of a local cluster must show.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads the token file.
    ///
    /// # Errors
    /// When the file cannot be read, can be read by others, or holds less than 32 characters.
    pub fn read(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let at = |error: io::Error| io::Error::new(error.kind(), format!("token file {}: {error}", path.display()));
        let mode = std::fs::metadata(path).map_err(at)?.permissions().mode();
        if mode & 0o077 != 0 {
            let message = format!("can be read by others (mode {:03o}); make it 0600", mode & 0o777);
            return Err(at(io::Error::new(io::ErrorKind::PermissionDenied, message)));
        }
        let token = std::fs::read_to_string(path).map_err(at)?.trim().to_owned();
        if token.len() < TOKEN_CHARS_MIN {
            let message = format!("holds {} characters; a token has at least {TOKEN_CHARS_MIN}", token.len());
            return Err(at(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        Ok(Token(token))
    }

    /// A secret made by this process.
    pub(crate) fn of(secret: String) -> Self {
        Token(secret)
    }

    /// True when `shown` is the token; takes the same time wherever they differ.
    pub fn matches(&self, shown: &str) -> bool {
        let (ours, theirs) = (self.0.as_bytes(), shown.as_bytes());
        let mut difference = ours.len() ^ theirs.len();
        for (at, byte) in ours.iter().enumerate() {
            difference |= usize::from(byte ^ theirs.get(at).copied().unwrap_or(0));
        }
        difference == 0
    }

    /// Checks a call's `authorization: Bearer …`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with the same words whatever was wrong.
    pub fn check(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
        match shown.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if self.matches(token) => Ok(()),
            _ => Err(Status::unauthenticated(
                "this call needs the cluster's token: authorization: Bearer <content of the token file>",
            )),
        }
    }

    /// As an interceptor of a whole service.
    pub fn interceptor(&self) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
        let token = self.clone();
        move |request| token.check(request.metadata()).map(|()| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_is_let_in() {
        let token = Token("a".repeat(32));
        for (header, ok) in [
            (Some(format!("Bearer {}", "a".repeat(32))), true),
            (Some(format!("Bearer {}", "a".repeat(31))), false),
            (Some(format!("Bearer {}", "a".repeat(33))), false),
            (Some("Bearer nothing".to_owned()), false),
            (Some("Bearer ".to_owned()), false),
            (Some("a".repeat(32)), false),
            (None, false),
        ] {
            let mut metadata = MetadataMap::new();
            if let Some(value) = &header {
                metadata.insert("authorization", value.parse().unwrap());
            }
            assert_eq!(token.check(&metadata).is_ok(), ok, "{header:?}");
        }
    }
}
