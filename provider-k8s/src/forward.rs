//! Ports of a pod on this machine: a loopback listener each, whose connections go through the API server to the pod.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::failure;

/// Connections at once; the next wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Bytes that are read at once in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// A port of a pod on this machine. It ends, with its connections, when this is dropped.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    problem: Arc<Mutex<Option<String>>>,
    accepting: JoinHandle<()>,
}

impl Forward {
    /// Listens on a free loopback port, or on `local` where it is not 0, for connections to `port` of the pod.
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub async fn open(client: &Client, namespace: &str, pod: &str, port: u16, local: u16) -> std::io::Result<Forward> {
        let listener = TcpListener::bind(("127.0.0.1", local)).await?;
        let address = listener.local_addr()?;
        let problem = Arc::<Mutex<Option<String>>>::default();
        let to = To { pods: Api::namespaced(client.clone(), namespace), pod: pod.to_owned(), port, problem: problem.clone() };
        Ok(Forward { address, problem, accepting: tokio::spawn(accept(listener, to)) })
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why the last connection that failed did so.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Its connections are in a set of the task's own, and end with it.
        self.accepting.abort();
    }
}

#[derive(Clone)]
struct To {
    pods: Api<Pod>,
    pod: String,
    port: u16,
    problem: Arc<Mutex<Option<String>>>,
}

async fn accept(listener: TcpListener, to: To) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let to = to.clone();
                connections.spawn(async move {
                    if let Err(problem) = carry(stream, &to).await {
                        tracing::debug!(pod = %to.pod, port = to.port, %problem, "a forwarded connection ended");
                        *to.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
                    }
                    drop(place);
                });
            }
            // Too many open files: a connection that ends makes room.
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(mut here: TcpStream, to: &To) -> Result<(), String> {
    // Frames are small and answers are waited for.
    let _ = here.set_nodelay(true);
    let mut forwarder = to.pods.portforward(&to.pod, &[to.port]).await.map_err(|error| failure::chain(&error))?;
    let mut there = forwarder.take_stream(to.port).ok_or_else(|| "the API opened another port".to_owned())?;
    let refused = forwarder.take_error(to.port);
    let copied = tokio::io::copy_bidirectional_with_sizes(&mut here, &mut there, BUFFER_BYTES, BUFFER_BYTES).await;
    drop(there);
    let said = match refused {
        Some(refused) => tokio::time::timeout(std::time::Duration::from_millis(100), refused).await.ok().flatten(),
        None => None,
    };
    forwarder.abort();
    match (copied, said) {
        (_, Some(message)) => Err(message),
        (Err(error), None) => Err(error.to_string()),
        (Ok(_), None) => Ok(()),
    }
}
