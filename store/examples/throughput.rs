//! How fast objects move between two peers, beside what a loopback connection and `memcpy` give in the same run. Prints JSON.
//!
//!     cargo run --release -p scalable-store --example throughput -- [MiB per measurement] [rounds]
#![allow(clippy::print_stdout)]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use scalable_store::*;

const MIB: usize = 1 << 20;
type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let total = arguments.next().map_or(Ok(1024), |text| text.parse::<usize>())? * MIB;
    let rounds = arguments.next().map_or(Ok(5), |text| text.parse::<usize>())?;
    let mut rows = serde_json::Map::new();
    for size in [128 << 10, MIB, 16 * MIB] {
        let count = (total / size).max(1);
        let measure = |work: &mut dyn FnMut() -> Result<(), Failure>| -> Result<(f64, f64), Failure> {
            let mut rates = Vec::new();
            let cpu = cpu_us();
            for _ in 0..rounds {
                let begun = Instant::now();
                work()?;
                rates.push((count * size) as f64 / MIB as f64 / begun.elapsed().as_secs_f64());
            }
            rates.sort_by(f64::total_cmp);
            let mib = (rounds * count * size) as f64 / MIB as f64;
            Ok((rates[rates.len() / 2].round(), ((cpu_us() - cpu) / mib).round()))
        };
        let tcp = measure(&mut || loopback(size, count))?;
        let copy = measure(&mut || memcpy(size, count))?;
        let bench = Bench::new(size)?;
        let net = measure(&mut || bench.fetch(&bench.net, count))?;
        let host = measure(&mut || bench.fetch(&bench.host, count))?;
        rows.insert(
            format!("{}KiB", size >> 10),
            serde_json::json!({
                "unit": "MiB/s", "loopback_tcp": tcp.0, "memcpy": copy.0, "fetch_net": net.0, "fetch_host": host.0,
                "net_of_tcp": (net.0 / tcp.0 * 100.0).round() / 100.0, "host_of_memcpy": (host.0 / copy.0 * 100.0).round() / 100.0,
                "cpu_us_per_mib": { "loopback_tcp": tcp.1, "memcpy": copy.1, "fetch_net": net.1, "fetch_host": host.1 },
            }),
        );
    }
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

/// Microseconds of processor time that this process has used: what a busy machine does not distort as much as time.
fn cpu_us() -> f64 {
    // SAFETY: all-zero is a valid rusage, which outlives the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime].iter().map(|time| time.tv_sec as f64 * 1e6 + time.tv_usec as f64).sum()
}

/// A plain copy through a loopback connection between two threads, the buffers used again and again.
fn loopback(size: usize, count: usize) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let buffer = vec![1; size];
        (0..count).try_for_each(|_| stream.write_all(&buffer))
    });
    let mut stream = TcpStream::connect(address)?;
    let mut buffer = vec![0; size];
    for _ in 0..count {
        stream.read_exact(&mut buffer)?;
    }
    sender.join().map_err(|_| "the sender panicked")??;
    Ok(())
}

fn memcpy(size: usize, count: usize) -> Result<(), Failure> {
    let from = vec![1u8; size];
    let mut to = vec![0u8; size];
    for _ in 0..count {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
    }
    Ok(())
}

struct Bench {
    request: Vec<FetchRequest>,
    net: Fetcher,
    host: Fetcher,
    _server: PeerServer,
    _directory: std::path::PathBuf,
}

/// Different objects that are asked for in turn, so that none is fetched twice at once.
const OBJECTS: u32 = 16;
/// Fetches on their way at once.
const WINDOW: usize = 4;

impl Bench {
    fn new(size: usize) -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("store-throughput-{}-{size}", std::process::id()));
        let store = Store::open(StoreOptions::new(&directory, 4 << 30))?;
        let server = PeerServer::start(ServerOptions::new(([127, 0, 0, 1], 0).into()), store.clone())?;
        let cluster = ObjectKey::random()?;
        server.set_key(cluster.clone());
        let mut request = Vec::new();
        for index in 0..OBJECTS {
            let id = ObjectId { run: 1, group: 1, index, attempt: 1 };
            let mut writer = store.pool().take(size)?;
            writer.as_mut_slice().fill(index as u8);
            drop(store.insert(id, writer.freeze(), Keep::Origin)?);
            let capability = cluster.grant(id.into(), now_ms() + 3_600_000);
            let holders = vec![Holder { address: server.address().to_string(), host: String::new() }];
            request.push(FetchRequest { key: id.into(), size: size as u64, holders, capability });
        }
        let fetcher = |short_cut| {
            let options = FetcherOptions { short_cut, ..FetcherOptions::new(SegmentPool::new(256 << 20)) };
            Fetcher::start(options)
        };
        Ok(Self { request, net: fetcher(false)?, host: fetcher(true)?, _server: server, _directory: directory })
    }

    /// Fetches `count` objects and touches each of their pages.
    fn fetch(&self, fetcher: &Fetcher, count: usize) -> Result<(), Failure> {
        let mut running: VecDeque<Fetch> = VecDeque::new();
        let mut touched = 0u64;
        for i in 0..count + WINDOW {
            if i < count {
                running.push_back(fetcher.fetch(self.request[i % self.request.len()].clone()));
            }
            if (running.len() > WINDOW || i >= count)
                && let Some(fetch) = running.pop_front()
            {
                let content = fetch.wait()?;
                let bytes = content.memory()?.ok_or("not in memory")?;
                touched += bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
            }
        }
        std::hint::black_box(touched);
        Ok(())
    }
}
