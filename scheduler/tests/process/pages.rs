//! 8787 as strangers, people and browsers see it, over a real socket.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::{Scheduler, TOKEN};

/// Sends one request and returns (status, whole answer).
fn ask(scheduler: &Scheduler, request_line: &str, headers: &[&str]) -> (u16, String) {
    let authority = scheduler.ready["http"].as_str().unwrap().trim_start_matches("http://");
    let mut stream = TcpStream::connect(authority).unwrap();
    let host =
        if headers.iter().any(|header| header.starts_with("Host:")) { String::new() } else { format!("Host: {authority}\r\n") };
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "{request_line} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[test]
fn pages_answer_whom_they_should() {
    let scheduler = Scheduler::start();
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let own = format!("Origin: {}", scheduler.ready["http"].as_str().unwrap());
    for (line, headers, status) in [
        ("GET /livez", vec![], 200),
        ("GET /readyz", vec![], 200),
        ("GET /metrics", vec![], 200),
        ("GET /", vec![], 401),
        ("GET /api/v1/status", vec![], 401),
        ("GET /api/v1/status", vec!["Authorization: Bearer nothing"], 401),
        ("GET /api/v1/status", vec!["Cookie: scalable="], 401),
        ("GET /api/v1/status", vec![bearer.as_str()], 200),
        ("GET /api/v1/status", vec![bearer.as_str(), own.as_str()], 200),
        ("GET /api/v1/status", vec![bearer.as_str(), "Origin: http://evil.example"], 403),
        ("GET /livez", vec!["Host: evil.example"], 421),
        ("DELETE /api/v1/status", vec!["Host: evil.example:8787"], 421),
        ("POST /api/v1/link", vec![], 401),
        ("GET /login?once=guess", vec![], 401),
    ] {
        let (got, answer) = ask(&scheduler, line, &headers);
        assert_eq!(got, status, "{line} {headers:?}\n{answer}");
    }
    let (_, metrics) = ask(&scheduler, "GET /metrics", &[]);
    assert!(metrics.contains("scalable_tasks_committed 0"), "{metrics}");
}

#[test]
fn a_browser_gets_in_by_a_link_once_and_may_only_read() {
    let scheduler = Scheduler::start();
    let path = |link: &str| format!("GET /{}", link.splitn(4, '/').nth(3).unwrap());
    let first = path(scheduler.ready["link"].as_str().unwrap());
    let (status, answer) = ask(&scheduler, &first, &[]);
    assert_eq!(status, 303, "{answer}");
    assert_eq!(ask(&scheduler, &first, &[]).0, 401, "the link is used up");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = format!("Cookie: other=1; {}", cookie.split(';').next().unwrap());
    let (status, page) = ask(&scheduler, "GET /", &[&cookie]);
    assert!(status == 200 && page.contains("/api/v1/status"), "{page}");
    assert_eq!(ask(&scheduler, "POST /api/v1/link", &[&cookie]).0, 401, "making links needs the token");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let (status, link) = ask(&scheduler, "POST /api/v1/link", &[&bearer]);
    assert_eq!(status, 200, "{link}");
    assert_eq!(ask(&scheduler, &path(link.lines().last().unwrap()), &[]).0, 303);
}
