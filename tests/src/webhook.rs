//! An admission webhook that changes pods, as an organisation's policy may: served by this machine to the API server of the tests' own cluster.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::proxy::{Head, acceptor, base64};

/// A webhook that adds to every pod it is asked about, until it is dropped.
pub struct Webhook {
    port: u16,
    asked: Arc<AtomicU32>,
    _runtime: tokio::runtime::Runtime,
}

impl Webhook {
    /// Applies `patch` (JSON patch) to whatever the API server of the cluster in `cluster` asks about.
    pub fn new(cluster: &Path, patch: &Value) -> Webhook {
        let acceptor = acceptor(cluster);
        let patch = base64(patch.to_string().as_bytes());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("0.0.0.0:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicU32::new(0));
        let counted = asked.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, patch, counted) = (acceptor.clone(), patch.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let mut stream = BufReader::new(stream);
                    while let Ok(Some(review)) = review(&mut stream).await {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let answer = json!({
                            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                            "response": { "uid": review["request"]["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch },
                        })
                        .to_string();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
                        let written = async {
                            stream.write_all(head.as_bytes()).await?;
                            stream.write_all(answer.as_bytes()).await?;
                            stream.flush().await
                        };
                        if written.await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Webhook { port, asked, _runtime: runtime }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How often it was asked.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The next request's document.
async fn review(stream: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Option<Value>> {
    let Some(head) = Head::read(stream).await? else { return Ok(None) };
    let mut body = vec![0; head.length()];
    stream.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}
