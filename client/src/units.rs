//! Figures as people write them, in the manifest's grammar as far as a program needs it: `512MiB`, `500m`, `10m`. Evaluated while
//! the program is compiled where they stand in `#[scalable::task(…)]`.

/// Ten years: the longest duration.
const MILLIS_MAX: u64 = 10 * 365 * 24 * 3_600_000;

/// A decimal's digits before a unit, in thousandths, and where the unit begins. Nothing when there is none, when it has more than
/// three places, or when it is too large.
const fn thousandths(text: &[u8]) -> Option<(u64, usize)> {
    let (mut at, mut value, mut places, mut point, mut digits) = (0, 0u64, 0, false, 0);
    while at < text.len() {
        match text[at] {
            digit @ b'0'..=b'9' => {
                value = match value.checked_mul(10) {
                    Some(value) => value,
                    None => return None,
                };
                value = match value.checked_add((digit - b'0') as u64) {
                    Some(value) => value,
                    None => return None,
                };
                digits += 1;
                if point {
                    places += 1;
                }
            }
            b'_' => {}
            b'.' if !point => point = true,
            _ => break,
        }
        at += 1;
    }
    if digits == 0 || places > 3 {
        return None;
    }
    while places < 3 {
        value = match value.checked_mul(10) {
            Some(value) => value,
            None => return None,
        };
        places += 1;
    }
    Some((value, at))
}

/// True when `text` from `at` is `unit`, in either case.
const fn ends_with(text: &[u8], at: usize, unit: &str) -> bool {
    let unit = unit.as_bytes();
    if text.len() - at != unit.len() {
        return false;
    }
    let mut n = 0;
    while n < unit.len() {
        if !text[at + n].eq_ignore_ascii_case(&unit[n]) {
            return false;
        }
        n += 1;
    }
    true
}

/// Memory: `512MiB`, `2GB`, `1.5Gi`, `4096`. Bytes, at least one.
pub(crate) const fn memory(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 18] = [
        ("", 1),
        ("B", 1),
        ("k", 1_000),
        ("kB", 1_000),
        ("M", 1_000_000),
        ("MB", 1_000_000),
        ("G", 1_000_000_000),
        ("GB", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("TB", 1_000_000_000_000),
        ("Ki", 1 << 10),
        ("KiB", 1 << 10),
        ("Mi", 1 << 20),
        ("MiB", 1 << 20),
        ("Gi", 1 << 30),
        ("GiB", 1 << 30),
        ("Ti", 1 << 40),
        ("TiB", 1 << 40),
    ];
    let bytes = text.as_bytes();
    let Some((value, mut at)) = thousandths(bytes) else { return None };
    while at < bytes.len() && bytes[at] == b' ' {
        at += 1;
    }
    let mut n = 0;
    while n < UNITS.len() {
        if ends_with(bytes, at, UNITS[n].0) {
            let scaled = value as u128 * UNITS[n].1 as u128 / 1000;
            return if scaled == 0 || scaled > i64::MAX as u128 { None } else { Some(scaled as u64) };
        }
        n += 1;
    }
    None
}

/// Cpus: `2`, `0.5`, `500m`. Thousandths, at least one.
pub(crate) const fn milli_cpus(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let Some((value, at)) = thousandths(bytes) else { return None };
    let milli = if at == bytes.len() {
        value
    } else if ends_with(bytes, at, "m") && value.is_multiple_of(1000) {
        value / 1000
    } else {
        return None;
    };
    if milli == 0 || milli > 1_000_000_000 { None } else { Some(milli) }
}

/// A duration: `90` and `1.5` are seconds; `500ms`, `10m`, `1h30m`, `2d`. Milliseconds, at most ten years.
pub(crate) const fn duration_ms(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut rest = text.as_bytes();
    let Some((seconds, at)) = thousandths(rest) else { return None };
    if at == rest.len() {
        return if seconds > MILLIS_MAX { None } else { Some(seconds) };
    }
    let (mut total, mut last) = (0u64, u64::MAX);
    while !rest.is_empty() {
        let Some((value, at)) = thousandths(rest) else { return None };
        let mut end = at;
        while end < rest.len() && rest[end].is_ascii_alphabetic() {
            end += 1;
        }
        let (part, next) = rest.split_at(end);
        let mut n = 0;
        let scale = loop {
            if n == UNITS.len() {
                return None;
            }
            if ends_with(part, at, UNITS[n].0) {
                break UNITS[n].1;
            }
            n += 1;
        };
        // From larger units to smaller ones, each once.
        if scale >= last {
            return None;
        }
        last = scale;
        let millis = value as u128 * scale as u128 / 1000 + total as u128;
        if millis > MILLIS_MAX as u128 {
            return None;
        }
        total = millis as u64;
        rest = next;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_in_a_manifest() {
        let memories = [
            ("512MiB", Some(512 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("1.5Gi", Some(3 << 29)),
            ("4096", Some(4096)),
            ("1 kb", Some(1000)),
            ("0", None),
            ("12 apples", None),
            ("-1G", None),
            ("", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in memories {
            assert_eq!(memory(text), expected, "{text:?}");
        }
        let cpus = [("2", Some(2000)), ("0.5", Some(500)), ("500m", Some(500)), ("0", None), ("1.5m", None), ("1x", None)];
        for (text, expected) in cpus {
            assert_eq!(milli_cpus(text), expected, "{text:?}");
        }
        let durations = [
            ("90", Some(90_000)),
            ("1.5", Some(1500)),
            ("500ms", Some(500)),
            ("10m", Some(600_000)),
            ("1h30m", Some(5_400_000)),
            ("2d", Some(172_800_000)),
            ("30m1h", None),
            ("10 m", None),
            ("1w", None),
            ("m", None),
            ("11y", None),
            ("99999d", None),
        ];
        for (text, expected) in durations {
            assert_eq!(duration_ms(text), expected, "{text:?}");
        }
    }
}
