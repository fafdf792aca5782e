//! What can go wrong between a client and a scheduler, in words that can be shown to a user.

use tonic::Code;

use crate::TaskError;

/// Why a call did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The address does not name an http endpoint.
    #[error("{address:?} is not an address of a scheduler: {reason}; expected something like http://127.0.0.1:8786")]
    BadAddress {
        /// As given.
        address: String,
        /// What the parser said.
        reason: String,
    },
    /// The token holds characters that cannot travel in a header.
    #[error("the token is not usable: it must be printable ASCII without line breaks")]
    BadToken,
    /// Nobody answers there.
    #[error("no scheduler answers at {address}: {reason}")]
    Unreachable {
        /// Where it was tried.
        address: String,
        /// What the network said.
        reason: String,
    },
    /// The scheduler does not accept the token.
    #[error("the scheduler at {address} does not accept this token; each run has its own, named in its run.json")]
    Unauthenticated {
        /// Whose scheduler.
        address: String,
    },
    /// The scheduler speaks no version of the protocol that this build speaks.
    #[error(
        "client and scheduler speak different versions: {reason}; this client speaks protocol {min} to {max}, use programs of one release",
        min = scalable_proto::PROTOCOL.start(),
        max = scalable_proto::PROTOCOL.end()
    )]
    VersionSkew {
        /// What the scheduler said.
        reason: String,
    },
    /// The request was understood and refused.
    #[error("{message}")]
    Refused {
        /// Stable code, for programs.
        code: String,
        /// One sentence.
        message: String,
        /// What to do now, or empty.
        help: String,
    },
    /// A task that was submitted has no result.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The scheduler was there and is gone, or it is another one now.
    #[error("the connection to the scheduler at {address} is lost: {reason}")]
    Lost {
        /// Whose scheduler.
        address: String,
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// The error behind a gRPC status of the scheduler at `address`.
    pub(crate) fn from_status(address: &str, status: &tonic::Status) -> Error {
        let message =
            if status.message().is_empty() { status.code().description().to_owned() } else { status.message().to_owned() };
        match status.code() {
            Code::Unauthenticated => Error::Unauthenticated { address: address.to_owned() },
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown => {
                Error::Unreachable { address: address.to_owned(), reason: reason_of(status) }
            }
            Code::Unimplemented => Error::VersionSkew { reason: format!("the scheduler does not know the call ({message})") },
            Code::Aborted | Code::Cancelled => Error::Lost { address: address.to_owned(), reason: message },
            code => Error::Refused { code: code_name(code).to_owned(), message, help: String::new() },
        }
    }

    /// True when trying again later may succeed: the network or the peer's process is at fault, not the request.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Unreachable { .. } | Error::Lost { .. })
    }

    /// What to do now, or nothing where the message says it already.
    pub fn help(&self) -> Option<&str> {
        match self {
            Error::Refused { help, .. } | Error::Task(TaskError::Rejected { help, .. }) if !help.is_empty() => Some(help),
            _ => None,
        }
    }
}

/// The innermost cause: tonic's outer layers say no more than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// What a status says went wrong with the network.
fn reason_of(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        None if !status.message().is_empty() => status.message().to_owned(),
        _ => innermost(status),
    }
}

/// The innermost cause of a transport error.
pub(crate) fn transport_reason(error: &tonic::transport::Error) -> String {
    innermost(error)
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::DataLoss => "DATA_LOSS",
        _ => "INTERNAL",
    }
}
