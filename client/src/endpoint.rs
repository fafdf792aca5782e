//! Where the scheduler is and how it is reached: address, token, limits of the transport.

use std::time::Duration;

use scalable_proto::MESSAGE_BYTES_MAX;
use scalable_proto::v1::client_service_client::ClientServiceClient;
use scalable_proto::v1::control_service_client::ControlServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint as TransportEndpoint};

use scalable_store::{FetcherOptions, SegmentPool};
use scalable_tls::{Connection, Connector, PeerDialer};

use crate::Error;
use crate::error::transport_reason;

/// Longest wait for one connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a unary call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 windows: a batch of a megabyte passes without waiting for a window update.
const WINDOW_BYTES: u32 = 4 << 20;

/// A scheduler's address and the token it wants.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    address: String,
    transport: TransportEndpoint,
    authorization: MetadataValue<Ascii>,
    secured: Option<Secured>,
}

/// What a cluster beyond this machine takes.
#[derive(Clone, Debug)]
struct Secured {
    connector: Connector,
    peers: PeerDialer,
    store_address: Option<String>,
}

impl Endpoint {
    /// Checks both; contacts nobody. An address without a scheme means http.
    pub(crate) fn new(address: &str, token: &str) -> Result<Endpoint, Error> {
        let bad_address = |reason: String| Error::BadAddress { address: address.to_owned(), reason };
        let address_full = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let transport =
            TransportEndpoint::from_shared(address_full.clone()).map_err(|error| bad_address(transport_reason(&error)))?;
        if transport.uri().scheme_str() != Some("http") {
            return Err(bad_address(
                "only http is spoken to a scheduler on this machine; beyond it a connection file is needed".to_owned(),
            ));
        }
        if transport.uri().port().is_none() {
            return Err(bad_address("it has no port".to_owned()));
        }
        let transport = transport
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20));
        let authorization = format!("Bearer {}", token.trim()).parse().map_err(|_| Error::BadToken)?;
        Ok(Endpoint { address: address_full, transport, authorization, secured: None })
    }

    /// A scheduler beyond this machine: over TLS, verified for its cluster. Contacts nobody.
    pub(crate) fn secured(connection: &Connection) -> Result<Endpoint, Error> {
        let bad = |reason: String| Error::BadAddress { address: connection.address.clone(), reason };
        connection.check().map_err(|error| bad(error.to_string()))?;
        let trust = connection.trust().map_err(|error| bad(error.to_string()))?;
        let secured = Secured {
            connector: Connector::new(&trust, None).map_err(|error| bad(error.to_string()))?,
            peers: trust.to_peers(None).map_err(|error| bad(error.to_string()))?,
            store_address: connection.store_address.clone(),
        };
        // With a connector of our own, which makes it TLS, the transport is told of plain http.
        let endpoint = Endpoint::new(&connection.address.replacen("https://", "http://", 1), &connection.token)?;
        Ok(Endpoint { address: connection.address.clone(), secured: Some(secured), ..endpoint })
    }

    /// How what is fetched and brought travels from here.
    pub(crate) fn fetcher_options(&self, pool: SegmentPool) -> FetcherOptions {
        let tls = self.secured.as_ref().map(|secured| secured.peers.clone());
        FetcherOptions { tls, ..FetcherOptions::new(pool) }
    }

    /// Where the scheduler's store is reached from here that says it is at `advertised`.
    pub(crate) fn store_address<'a>(&'a self, advertised: &'a str) -> &'a str {
        self.secured.as_ref().and_then(|secured| secured.store_address.as_deref()).unwrap_or(advertised)
    }

    /// The address with its scheme.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A connection of its own, made now.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        let connected = match &self.secured {
            None => self.transport.connect().await,
            Some(secured) => self.transport.connect_with_connector(secured.connector.clone()).await,
        };
        connected.map_err(|error| Error::Unreachable { address: self.address.clone(), reason: transport_reason(&error) })
    }

    /// A connection that is made with the first call and again after it broke.
    pub(crate) fn connect_lazily(&self) -> Channel {
        match &self.secured {
            None => self.transport.connect_lazy(),
            Some(secured) => self.transport.connect_with_connector_lazy(secured.connector.clone()),
        }
    }

    /// A unary request with the token and a deadline.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = self.stream_request(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// A streaming request with the token.
    pub(crate) fn stream_request<T>(&self, stream: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(stream);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// The unary service over `channel`.
    pub(crate) fn control(&self, channel: Channel) -> ControlServiceClient<Channel> {
        ControlServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The streaming service over `channel`.
    pub(crate) fn streams(&self, channel: Channel) -> ClientServiceClient<Channel> {
        ClientServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_tokens_are_checked_before_anybody_is_contacted() {
        assert_eq!(Endpoint::new("127.0.0.1:8786", "t").unwrap().address(), "http://127.0.0.1:8786");
        assert_eq!(Endpoint::new("http://127.0.0.1:8786", "t\n").unwrap().address(), "http://127.0.0.1:8786");
        for address in ["", "http://", "https://127.0.0.1:8786", "127.0.0.1", "http://a b:1", "http://127.0.0.1:port"] {
            assert!(matches!(Endpoint::new(address, "t"), Err(Error::BadAddress { .. })), "{address:?}");
        }
        for token in ["a\nb", "a\0b", "ä\u{7f}"] {
            assert!(matches!(Endpoint::new("127.0.0.1:1", token), Err(Error::BadToken)), "{token:?}");
        }
    }
}
