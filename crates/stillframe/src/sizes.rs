//! Sizes and spans in units that people read.

use std::fmt;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use stillframe_repo::BackupId;
use stillframe_storage::ByteSize;

/// A number of bytes, as given on the command line: `4096`, `20MiB`, `20M` (both 20 × 2²⁰), `1.5G`, `20MB` (20 × 10⁶).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "checked"
    )]
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let help = || format!("{text:?} is not a size; write for example 500MiB, 20M or 1.5GiB");
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number: f64 = number.parse().map_err(|_| help())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(help()),
        };
        let bytes = number * factor as f64;
        if bytes < 1.0 || bytes >= (1_u64 << 62) as f64 {
            return Err(format!("{text:?} is out of range; give at least 1 byte and less than 4 EiB"));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bytes(self.0))
    }
}

/// Free space to leave: bytes, or a share of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the file system.
    Percent(u8),
}

impl FromStr for Reserve {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse::<u8>() {
                Ok(percent) if percent <= 100 => Ok(Self::Percent(percent)),
                _ => Err(format!("{text:?} is not a share; write 0% to 100%")),
            };
        }
        if text == "0" {
            return Ok(Self::Bytes(0));
        }
        text.parse::<Size>().map(|size| Self::Bytes(size.0))
    }
}

/// `1.4 GiB`.
pub fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// `2026-01-31 12:00:00Z`.
pub fn time(at: Timestamp) -> impl Display {
    at.strftime("%Y-%m-%d %H:%M:%SZ")
}

/// As much of an id as tells it from others on a page.
pub fn short(id: BackupId) -> String {
    id.to_string().chars().take(12).collect()
}

/// `1 file`, `2 files`.
pub fn count(number: u64, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// `12.3 ms`, `4.56 s`, `1 h 02 min`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration < Duration::from_millis(1) {
        format!("{} µs", duration.as_micros())
    } else if seconds < 1 {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else if seconds < 60 {
        format!("{:.2} s", duration.as_secs_f64())
    } else if seconds < 3600 {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, expected) in
            [("1", 1), ("20M", 20 << 20), ("20MB", 20_000_000), ("1.5GiB", 3 << 29), ("2k", 2048)]
        {
            assert_eq!(text.parse::<Size>(), Ok(Size(expected)), "{text}");
        }
        for text in ["", "x", "-1", "0", "5X", "1e99G", "NaN", "1.2.3"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn reserves_are_bytes_or_a_share() {
        assert_eq!("5%".parse(), Ok(Reserve::Percent(5)));
        assert_eq!("0".parse(), Ok(Reserve::Bytes(0)));
        assert_eq!("1GiB".parse(), Ok(Reserve::Bytes(1 << 30)));
        assert!("101%".parse::<Reserve>().is_err());
    }

    #[test]
    fn numbers_are_printed_for_people() {
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!([count(0, "file"), count(1, "file"), count(2, "file")], ["0 files", "1 file", "2 files"]);
        assert_eq!(span(Duration::from_micros(12_345)), "12.3 ms");
        assert_eq!(span(Duration::from_secs(3725)), "1 h 02 min");
    }
}
