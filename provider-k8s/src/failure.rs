//! What a refused or failed request to the API means: *never*, or *not now*, with the server's own words.

use std::time::Duration;

use kube::Error;
use kube::core::Status;
use scalable_provider::{Reason, ReasonClass};

/// Says what a failed request means. `doing` begins the message: `create pod scalable-worker-gcam-0`.
pub fn classify(doing: &str, error: &Error) -> Reason {
    let class = match error {
        Error::Api(status) => class_of(status),
        _ => ReasonClass::NotNow,
    };
    Reason { class, message: format!("cannot {doing}: {}", chain(error)) }
}

/// The server's words, else its code.
pub fn words(status: &Status) -> String {
    match (status.message.trim(), status.reason.as_str()) {
        ("", "") => format!("the API answered with code {}", status.code),
        ("", reason) => format!("{reason} ({})", status.code),
        (message, _) => message.to_owned(),
    }
}

/// An error with what it stems from, each once; of an answer of the API its words.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut made = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !made.contains(&text) {
            made = if made.is_empty() { text.clone() } else { format!("{made}: {text}") };
        }
        // It shows all there is of an answer, as a programmer would want it.
        if let Some(Error::Api(status)) = error.downcast_ref() {
            return made.replace(&text, &words(status));
        }
        next = error.source();
    }
    made
}

/// How long the server asks to wait.
pub fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Api(status) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
        }
        _ => None,
    }
}

/// The code of the answer, or 0 where there was none.
pub fn code(error: &Error) -> u16 {
    match error {
        Error::Api(status) => status.code,
        _ => 0,
    }
}

fn class_of(status: &Status) -> ReasonClass {
    let message = status.message.as_str();
    // A webhook that refuses may use any code; one that cannot be asked is an error of the server.
    if message.contains("denied the request") {
        return ReasonClass::Never;
    }
    match status.code {
        403 if message.contains("exceeded quota") => {
            if above_hard_limit(message) {
                ReasonClass::Never
            } else {
                ReasonClass::NotNow
            }
        }
        400 | 403 | 404 | 405 | 413 | 415 | 422 => ReasonClass::Never,
        // 401: a token that is being renewed; 409: two writers at once; 429 and 5xx: later.
        _ => ReasonClass::NotNow,
    }
}

/// Whether one pod alone is above a hard limit, by the words of the quota's refusal:
/// `exceeded quota: q, requested: pods=1,cpu=4, used: pods=0,cpu=1, limited: pods=0,cpu=2`.
fn above_hard_limit(message: &str) -> bool {
    let list = |name: &str| {
        let from = message.split_once(name).map(|(_, rest)| rest).unwrap_or_default();
        let end = [", used: ", ", limited: "].iter().filter_map(|next| from.find(next)).min().unwrap_or(from.len());
        from[..end].split(',').filter_map(|pair| pair.trim().split_once('=')).collect::<Vec<_>>()
    };
    let limited = list("limited: ");
    list("requested: ").iter().any(|(key, requested)| {
        let limit = limited.iter().find(|(name, _)| name == key).and_then(|(_, amount)| quantity(amount));
        match (quantity(requested), limit) {
            (Some(requested), Some(limit)) => requested > limit,
            _ => false,
        }
    })
}

/// A quantity in thousandths; nothing when it is none or too large.
pub fn quantity(text: &str) -> Option<u128> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        "Pi" => 1_000 << 50,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = 10u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let part: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
    whole.checked_mul(factor)?.checked_add(part.checked_mul(factor)? / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status { code, message: message.to_owned(), ..Status::default() }))
    }

    #[track_caller]
    fn check(code: u16, message: &str, class: ReasonClass) {
        let reason = classify("create pod w", &status(code, message));
        assert_eq!(reason.class, class, "{code} {message}");
        assert_eq!(reason.message, format!("cannot create pod w: {message}"));
    }

    #[test]
    fn of_an_answer_its_words_are_shown_wherever_it_stands() {
        let refused = || status(403, "pods is forbidden");
        assert_eq!(chain(&refused()), "pods is forbidden");
        let watch = kube::runtime::watcher::Error::WatchStartFailed(refused());
        let said = chain(&watch);
        assert!(said.ends_with(": pods is forbidden") && !said.contains("Status {"), "{said}");
    }

    #[test]
    fn never_and_not_now() {
        use ReasonClass::{Never, NotNow};
        let quota = "pods \"w\" is forbidden: exceeded quota: q, requested: ";
        check(403, &format!("{quota}pods=1, used: pods=3, limited: pods=3"), NotNow);
        check(403, &format!("{quota}pods=1, used: pods=0, limited: pods=0"), Never);
        check(
            403,
            &format!("{quota}cpu=1,requests.memory=20Gi, used: cpu=0,requests.memory=0, limited: cpu=4,requests.memory=16Gi"),
            Never,
        );
        check(403, &format!("{quota}cpu=500m, used: cpu=1, limited: cpu=1"), NotNow);
        check(
            403,
            "pods is forbidden: User \"u\" cannot create resource \"pods\" in API group \"\" in the namespace \"n\"",
            Never,
        );
        check(403, "pods \"w\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true", Never);
        check(403, "pods \"w\" is forbidden: maximum cpu usage per Container is 1, but limit is 4", Never);
        check(422, "Pod \"w\" is invalid: spec.containers[0].image: Required value", Never);
        check(404, "namespaces \"n\" not found", Never);
        check(400, "admission webhook \"v.example.com\" denied the request: no", Never);
        check(500, "admission webhook \"v.example.com\" denied the request: no", Never);
        check(500, "Internal error occurred: failed calling webhook \"v.example.com\": no endpoints available", NotNow);
        check(409, "Operation cannot be fulfilled on resourcequotas \"q\": the object has been modified", NotNow);
        check(429, "too many requests", NotNow);
        check(503, "the server is currently unable to handle the request", NotNow);
        check(401, "Unauthorized", NotNow);
        let reason = classify("create pod w", &status(500, ""));
        assert_eq!(reason.message, "cannot create pod w: the API answered with code 500");
    }

    #[test]
    fn quantities() {
        for (text, expected) in [
            ("1", Some(1_000)),
            ("500m", Some(500)),
            ("1.5", Some(1_500)),
            ("2Ki", Some(2_048_000)),
            ("1k", Some(1_000_000)),
            ("0", Some(0)),
            ("1e3", None),
            ("x", None),
        ] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }
}
