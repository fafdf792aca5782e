//! Connects a gRPC channel over TLS: resolves the name anew each time, verifies the cluster and not the address.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};
use tower_service::Service;

use crate::{Certificate, TlsError, Trust};

/// To be given to `tonic::transport::Endpoint::connect_with_connector`.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Connector {
    /// For connections to the scheduler of `trust`'s cluster; shows `own` where it has a certificate.
    ///
    /// # Errors
    /// When rustls refuses what it was given.
    pub fn new(trust: &Trust, own: Option<&Certificate>) -> Result<Connector, TlsError> {
        Ok(Connector { config: trust.to_scheduler(own)?, name: trust.scheduler_name() })
    }

    /// One connection.
    ///
    /// # Errors
    /// When nobody is there, or it is not this cluster's scheduler.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(self.config.clone()).connect(self.name.clone(), tcp).await
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let host = uri.host().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the address has no host"))?;
            // In an address of IPv6, brackets belong to the notation and not to the host.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            connector.connect(host, uri.port_u16().unwrap_or(443)).await.map(TokioIo::new)
        })
    }
}
