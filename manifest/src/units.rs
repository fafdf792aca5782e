//! Figures as people write them: cpus, memory, durations, factors. Integers inside: milli-cpus, bytes, milliseconds, thousandths.

use crate::node::{Kind, Node};

/// Most cpus of one task or worker, thousandths.
const MILLI_CPUS_MAX: u64 = 1_000_000_000;
/// Longest duration, milliseconds: ten years.
const MILLIS_MAX: u64 = 10 * 365 * 24 * 3_600_000;

/// Why a memory figure was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadMemory {
    /// Not of the grammar.
    Malformed,
    /// Zero or negative.
    NotPositive,
}

/// Memory in the grammar of Dask's `parse_bytes` and of Kubernetes: `8G`, `500MB`, `1024MiB`, `16Gi`, `1e9`. One letter and `…B`
/// are powers of 1000, `…i` and `…iB` of 1024. Case does not matter, except that Kubernetes' `m` (thousandths) is not one of them.
pub(crate) fn memory(text: &str) -> Result<u64, BadMemory> {
    let compact: String = text.chars().filter(|c| *c != ' ' && *c != '_').collect();
    if compact.is_empty() {
        return Err(BadMemory::Malformed);
    }
    // The unit is what follows the last digit or point; `1e9` has none, and neither has `E` as the exponent's letter.
    let split = compact.rfind(|c: char| c.is_ascii_digit() || c == '.').map_or(0, |at| at + 1);
    let (number, unit) = compact.split_at(split);
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "p" | "pb" => 1_000_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        "pi" | "pib" => 1 << 50,
        _ => return Err(BadMemory::Malformed),
    };
    if number.is_empty() {
        return Ok(scale);
    }
    if let Ok(whole) = number.parse::<u64>() {
        return match whole.checked_mul(scale) {
            Some(0) => Err(BadMemory::NotPositive),
            Some(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
            _ => Err(BadMemory::Malformed),
        };
    }
    let bytes = decimal(number).ok_or(BadMemory::Malformed)? * scale as f64;
    if !bytes.is_finite() || bytes >= i64::MAX as f64 {
        return Err(BadMemory::Malformed);
    }
    if bytes < 1.0 { Err(BadMemory::NotPositive) } else { Ok(bytes as u64) }
}

/// A number without `inf`, `nan` and the like.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)) && text.bytes().any(|b| b.is_ascii_digit());
    text.parse::<f64>().ok().filter(|number| plain && number.is_finite())
}

/// `number × 1000` of a decimal with at most three places, exactly; nothing when there are more or it is too large.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let places = places.trim_end_matches('0');
    if !digits(whole) || !digits(places) || places.len() > 3 || (whole.is_empty() && places.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let rest: u64 = format!("{places:0<3}").parse().ok()?;
    whole.checked_mul(1000)?.checked_add(rest)
}

/// Cpus: a number (`2`, `0.5`) or milli-cpus (`500m`), positive. Thousandths.
pub(crate) fn cpus(node: &Node) -> Option<u64> {
    let scalar = node.scalar()?;
    if matches!(scalar.kind, Kind::Bool(_) | Kind::Null) {
        return None;
    }
    cpus_text(&scalar.text)
}

/// As [`cpus`], from text.
pub(crate) fn cpus_text(text: &str) -> Option<u64> {
    let milli = match text.strip_suffix('m') {
        Some(milli) if !milli.is_empty() && milli.bytes().all(|b| b.is_ascii_digit()) => milli.parse().ok()?,
        Some(_) => return None,
        None => thousandths(text)?,
    };
    (1..=MILLI_CPUS_MAX).contains(&milli).then_some(milli)
}

/// A duration: `90`, `1.5` (seconds), `500ms`, `10m`, `1h30m`, `2d`, `12:00:00`. Milliseconds.
pub(crate) fn duration(node: &Node) -> Option<u64> {
    let scalar = node.scalar()?;
    if matches!(scalar.kind, Kind::Bool(_) | Kind::Null) {
        return None;
    }
    duration_text(&scalar.text)
}

fn duration_text(text: &str) -> Option<u64> {
    if let [hours, minutes, seconds] = text.split(':').collect::<Vec<_>>()[..] {
        let two = |part: &str| {
            Some(part).filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_digit()))?.parse::<u64>().ok().filter(|n| *n < 60)
        };
        let hours: u64 =
            Some(hours).filter(|h| (1..=5).contains(&h.len()) && h.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
        let total = ((hours * 60 + two(minutes)?) * 60 + two(seconds)?) * 1000;
        return (total <= MILLIS_MAX).then_some(total);
    }
    if let Some(millis) = thousandths(text) {
        return (millis <= MILLIS_MAX).then_some(millis);
    }
    let (mut total, mut rest, mut last) = (0u64, text, u64::MAX);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        // Larger units first, each once: `1h30m`, never `30m1h`.
        if unit >= last {
            return None;
        }
        total = total.checked_add(thousandths(number)?.checked_mul(unit)? / 1000)?;
        (rest, last) = (next, unit);
    }
    (last != u64::MAX && total <= MILLIS_MAX).then_some(total)
}

/// A factor of growth from 1 to 100, at most three places. Thousandths.
pub(crate) fn factor(node: &Node) -> Option<u32> {
    let scalar = node.scalar()?;
    if !matches!(scalar.kind, Kind::Int(_) | Kind::Float(_)) {
        return None;
    }
    let milli = thousandths(&scalar.text)?;
    (1_000..=100_000).contains(&milli).then_some(milli as u32)
}

/// Bytes for people: the largest unit in which the figure is exact (`512Mi`, `8G`), else GiB with two places.
pub fn format_bytes(bytes: u64) -> String {
    if bytes == 0 {
        return "0".to_owned();
    }
    let units = [(1_000_000_000, "G"), (1 << 30, "Gi"), (1_000_000, "M"), (1 << 20, "Mi"), (1_000, "k"), (1 << 10, "Ki")];
    for (scale, unit) in units {
        if bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    if bytes >= 1 << 30 {
        return format!("{:.2}Gi", bytes as f64 / (1u64 << 30) as f64);
    }
    if bytes >= 1 << 20 {
        return format!("{:.1}Mi", bytes as f64 / (1u64 << 20) as f64);
    }
    bytes.to_string()
}

/// Bytes as a quantity of Kubernetes, exactly, in the unit that makes it shortest.
pub fn quantity(bytes: u64) -> String {
    const UNITS: [(&str, u64); 8] = [
        ("Ti", 1 << 40),
        ("Gi", 1 << 30),
        ("Mi", 1 << 20),
        ("Ki", 1 << 10),
        ("T", 1_000_000_000_000),
        ("G", 1_000_000_000),
        ("M", 1_000_000),
        ("k", 1_000),
    ];
    let exact = UNITS.iter().filter(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    let texts = exact.map(|(unit, scale)| format!("{}{unit}", bytes / scale));
    texts.chain([bytes.to_string()]).min_by_key(String::len).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::diagnostic::At;
    use crate::node::{Scalar, Value};

    fn plain(text: &str) -> Node {
        Node { value: Value::Scalar(Scalar::new(text.to_owned(), true)), at: At::default() }
    }

    #[test]
    fn memory_is_read_as_dask_and_kubernetes_write_it() {
        for (text, bytes) in [
            ("8G", 8_000_000_000),
            ("500MB", 500_000_000),
            ("1024MiB", 1 << 30),
            ("16Gi", 16 << 30),
            ("16gib", 16 << 30),
            ("512M", 512_000_000),
            ("5.4 kB", 5_400),
            ("1e6", 1_000_000),
            ("100", 100),
            ("MB", 1_000_000),
            ("0.5Gi", 1 << 29),
            ("1kiB", 1024),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "8X", "G8", "8 Gx", "inf", "nan", "1e400", "99999999999999999999G", "--1", "8GiBB", "１G"] {
            assert_eq!(memory(text), Err(BadMemory::Malformed), "{text}");
        }
        for text in ["0", "0G", "-1G", "-0.5Gi", "0.0"] {
            assert_eq!(memory(text), Err(BadMemory::NotPositive), "{text}");
        }
    }

    #[test]
    fn cpus_are_decimal_or_milli() {
        for (text, milli) in
            [("2", 2000), ("0.5", 500), ("500m", 500), ("1.25", 1250), (".5", 500), ("0.001", 1), ("1.500000", 1500)]
        {
            assert_eq!(cpus(&plain(text)), Some(milli), "{text}");
        }
        for text in ["0", "-1", "0m", "m", "1.0001", "1e3", "true", "", "yes", "2 cpus", "1000001", "0.5m", "."] {
            assert_eq!(cpus(&plain(text)), None, "{text}");
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("1s", 1000),
            ("10m", 600_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1.5", 1500),
            ("90", 90_000),
            ("12:00:00", 43_200_000),
            ("2d", 172_800_000),
            ("0.5h", 1_800_000),
            ("0", 0),
        ] {
            assert_eq!(duration(&plain(text)), Some(millis), "{text}");
        }
        for text in ["", "s", "1x", "30m1h", "1m1m", "-1s", "1:2:3", "1h 30m", "99999999d", "1.2345s", "true", "00:60:00"] {
            assert_eq!(duration(&plain(text)), None, "{text}");
        }
    }

    #[test]
    fn bytes_as_quantities() {
        for (bytes, text) in [
            (8_000_000_000, "8G"),
            (16 << 30, "16Gi"),
            (500_000_000, "500M"),
            (32 << 20, "32Mi"),
            (1_610_612_737, "1610612737"),
            (0, "0"),
        ] {
            assert_eq!(quantity(bytes), text);
        }
    }

    #[test]
    fn bytes_read_well() {
        for (bytes, text) in
            [(8_000_000_000, "8G"), (16 << 30, "16Gi"), (512_000_000, "512M"), (1_610_612_737, "1.50Gi"), (1000, "1k"), (7, "7")]
        {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
