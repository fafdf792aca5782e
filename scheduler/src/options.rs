//! What `scalable-scheduler` can be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use scalable_core::ids::{MILLISECOND, Micros};

/// The server: clients and workers on 8786, people and monitoring on 8787.
#[derive(Clone, Debug, Parser)]
#[command(name = "scalable-scheduler", version)]
pub struct Options {
    /// Where clients and workers connect. Beyond loopback only with --credentials, and then over TLS.
    #[arg(long, default_value = "127.0.0.1:8786")]
    pub listen: SocketAddr,
    /// Where /livez, /readyz, /metrics, the status as JSON and the monitoring service are, in plain HTTP. Loopback only.
    #[arg(long, default_value = "127.0.0.1:8787")]
    pub http: SocketAddr,
    /// Take any free port where the one asked for is taken.
    #[arg(long)]
    pub any_port: bool,
    /// File with the token every call must show; mode 0600. For one machine.
    #[arg(long, env = "SCALABLE_TOKEN_FILE", value_name = "FILE", required_unless_present = "credentials")]
    pub token_file: Option<PathBuf>,
    /// Directory of the cluster's credentials (docs/security.md): TLS and roles instead of one token.
    #[arg(long, env = "SCALABLE_CREDENTIALS", value_name = "DIR", conflicts_with = "token_file")]
    pub credentials: Option<PathBuf>,
    /// Whoever reaches --http may read without a token: where loopback is this pod's own.
    #[arg(long)]
    pub trust_loopback: bool,
    /// What --http serves, over TLS, at this address beyond loopback.
    #[arg(long, env = "SCALABLE_HTTPS", value_name = "ADDRESS")]
    pub https: Option<SocketAddr>,
    /// A further name that --http and --https answer to; may be repeated.
    #[arg(long = "http-name", env = "SCALABLE_HTTP_NAMES", value_name = "NAME", value_delimiter = ',')]
    pub http_names: Vec<String>,
    /// Where the scheduler's store answers peers [default: any free port of --listen's address].
    #[arg(long, env = "SCALABLE_STORE", value_name = "ADDRESS")]
    pub store: Option<SocketAddr>,
    /// Where peers reach the store, when that is not where it listens.
    #[arg(long, env = "SCALABLE_ADVERTISE_STORE", value_name = "HOST:PORT")]
    pub advertise_store: Option<String>,
    /// File with workers that may have a certificate: lines of NAME UID ADDRESS, `*` for any address.
    #[arg(long, env = "SCALABLE_ADMIT", value_name = "FILE")]
    pub admit: Option<PathBuf>,
    /// A proxy stands between workers and this scheduler: do not compare their addresses.
    #[arg(long)]
    pub trust_proxy: bool,
    /// How long certificates are good, milliseconds.
    #[arg(long, env = "SCALABLE_CERTIFICATE_LIFETIME_MS", default_value_t = 86_400_000, hide = true,
          value_parser = clap::value_parser!(u64).range(1_000..=31_536_000_000))]
    pub certificate_lifetime_ms: u64,
    /// Directory for the scheduler's own files, such as the logs of the workers it starts.
    #[arg(long, default_value = ".scalable/scheduler")]
    pub state_dir: PathBuf,
    /// Directory for runs whose clients share no disk with the scheduler: in a directory of this process each gets one named after it. What
    /// earlier processes have left there is removed. Default: `runs` in the directory of the scheduler's own files.
    #[arg(long)]
    pub runs_dir: Option<PathBuf>,
    /// Most bytes of outputs and logs that are copied from workers: at 90 % of it copying stops. Default: no limit.
    #[arg(long, value_name = "BYTES")]
    pub store_limit: Option<u64>,
    /// Seconds that a run whose client shares no disk with the scheduler is kept for it after its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub results_ttl: u64,
    /// Start and keep this many workers on this machine (JSON).
    #[arg(long, value_name = "JSON")]
    pub local_workers: Option<String>,
    /// Start and keep the workers that this document describes as pods of a namespace.
    #[cfg(feature = "k8s")]
    #[arg(long, value_name = "FILE", conflicts_with = "local_workers")]
    pub kubernetes: Option<PathBuf>,
    /// Scale pools with their work; how (JSON, see `scalable_provider::dials`). With `--local-workers` between its `minimum` and `maximum`.
    #[arg(long, value_name = "JSON", hide = true)]
    pub scale: Option<String>,
    /// Standard input is a pipe: when it closes, cancel every run, stop the workers and end.
    #[arg(long)]
    pub lifeline: bool,
    /// End when no run is live any more and the idle time-to-live is over.
    #[arg(long)]
    pub exit_when_done: bool,
    /// Seconds without a live run after which `--exit-when-done` ends the scheduler.
    #[arg(long, default_value_t = 0)]
    pub idle_ttl: u64,
    /// Silence after which a worker is suspected, milliseconds.
    #[arg(long, env = "SCALABLE_SUSPECT_AFTER_MS", default_value_t = 15_000, hide = true)]
    pub suspect_after_ms: u64,
    /// Silence after which a worker is lost, milliseconds.
    #[arg(long, env = "SCALABLE_LOST_AFTER_MS", default_value_t = 30_000, hide = true)]
    pub lost_after_ms: u64,
    /// Time after a reset after which a worker is lost, milliseconds.
    #[arg(long, env = "SCALABLE_LOST_AFTER_RESET_MS", default_value_t = 10_000, hide = true)]
    pub lost_after_reset_ms: u64,
    /// How often workers are heard of at least, milliseconds.
    #[arg(long, env = "SCALABLE_HEARTBEAT_MS", default_value_t = 5_000, hide = true)]
    pub heartbeat_ms: u32,
}

impl Options {
    /// What nobody beyond this machine may reach, and would: one sentence.
    ///
    /// # Errors
    /// Which option, and what to do.
    pub fn check(&self) -> Result<(), String> {
        if !self.http.ip().is_loopback() {
            return Err(format!(
                "--http {}: plain HTTP is served on loopback only; beyond it is --https, with --credentials",
                self.http
            ));
        }
        if let Some(https) = self.https
            && https.ip().is_unspecified()
            && https.port() == self.http.port()
            && https.port() != 0
        {
            return Err(format!(
                "--https {https}: name the address of this machine or pod, since --http holds that port of loopback"
            ));
        }
        // Not left to the parser: it lets a missing option pass that is in conflict with one that is there.
        let secured = [
            ("--https", self.https.is_some()),
            ("--trust-loopback", self.trust_loopback),
            ("--admit", self.admit.is_some()),
            ("--trust-proxy", self.trust_proxy),
            #[cfg(feature = "k8s")]
            ("--kubernetes", self.kubernetes.is_some()),
        ];
        if let (None, Some((what, _))) = (&self.credentials, secured.iter().find(|(_, given)| *given)) {
            return Err(format!("{what} goes with --credentials DIR, the cluster's credentials"));
        }
        let beyond = [("--listen", Some(self.listen)), ("--store", self.store)];
        if self.credentials.is_none() {
            for (what, address) in beyond {
                if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                    return Err(format!(
                        "{what} {address} is beyond loopback, where nothing is served without TLS: name the cluster's credentials with \
                         --credentials DIR, or listen on 127.0.0.1"
                    ));
                }
            }
        } else if self.local_workers.is_some() {
            return Err(
                "--local-workers goes without --credentials: workers of this machine show the token of --token-file".to_owned()
            );
        }
        let store = self.store_at();
        if store.ip().is_unspecified() && self.advertise_store.is_none() {
            return Err(format!("the store listens on {store}: say where peers reach it with --advertise-store HOST:PORT"));
        }
        Ok(())
    }

    /// Where the scheduler's store listens.
    pub fn store_at(&self) -> SocketAddr {
        self.store.unwrap_or_else(|| SocketAddr::new(self.listen.ip(), 0))
    }

    /// How long certificates are good.
    pub fn certificate_lifetime(&self) -> Duration {
        Duration::from_millis(self.certificate_lifetime_ms)
    }

    /// Silence after which a worker is suspected.
    pub fn suspect_after(&self) -> Micros {
        self.suspect_after_ms.saturating_mul(MILLISECOND)
    }

    /// Silence after which a worker is lost.
    pub fn lost_after_silence(&self) -> Micros {
        self.lost_after_ms.saturating_mul(MILLISECOND)
    }

    /// Time after a reset after which a worker is lost.
    pub fn lost_after_reset(&self) -> Micros {
        self.lost_after_reset_ms.saturating_mul(MILLISECOND)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_served_beyond_loopback_without_credentials() {
        let check = |args: &str, expected: &str| {
            let parsed = Options::try_parse_from(std::iter::once("scalable-scheduler").chain(args.split_whitespace()));
            let said = match parsed {
                Ok(options) => options.check().err().unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(if expected.is_empty() { said.is_empty() } else { said.contains(expected) }, "{args}: {said}");
        };
        check("--token-file t", "");
        check("--token-file t --listen [::1]:8786", "");
        check("--token-file t --listen 0.0.0.0:8786", "--listen 0.0.0.0:8786 is beyond loopback");
        check("--token-file t --listen 10.0.0.1:8786", "--credentials DIR");
        check("--token-file t --store 10.0.0.1:8788", "--store 10.0.0.1:8788 is beyond loopback");
        check("--token-file t --http 10.0.0.1:8787", "loopback only");
        check("--token-file t --https 10.0.0.1:8787", "--credentials");
        check("--token-file t --trust-loopback", "--credentials");
        #[cfg(feature = "k8s")]
        check("--token-file t --kubernetes k", "--kubernetes goes with --credentials");
        #[cfg(feature = "k8s")]
        check("--credentials c --kubernetes k", "");
        check("--token-file t --credentials c", "cannot be used with");
        check("", "--token-file");
        check("--credentials c", "");
        check("--credentials c --listen 10.0.0.1:8786 --store 10.0.0.1:8788 --https 10.0.0.1:8787", "");
        check("--credentials c --listen 0.0.0.0:8786", "--advertise-store");
        check("--credentials c --listen 0.0.0.0:8786 --store 0.0.0.0:8788 --advertise-store s:8788", "");
        check("--credentials c --http 0.0.0.0:8787", "loopback only");
        check("--credentials c --https 0.0.0.0:8787", "name the address");
        check("--credentials c --local-workers {}", "--local-workers goes without");
    }
}
