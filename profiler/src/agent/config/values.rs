//! The values of a configuration that are more than text and numbers, checked as
//! they are read. Each reads what it writes.

use std::{fmt, str::FromStr, time::Duration};

use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Highest rate, in samples a second and CPU: above, sampling itself becomes
/// what is measured.
const MAX_RATE_HZ: u32 = 1000;
/// Longest window: what a crash may lose.
const MAX_PERIOD: Duration = Duration::from_secs(3600);
const UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A length of time from a second to an hour: `60s`, `1m30s`, or seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

/// A number of bytes: `128MiB`, `1GiB`, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub struct Bytes(pub u64);

/// Samples a second and CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u32);

/// What probes may take of one process, in hundredths of a percent of one CPU:
/// `1%`, `0.25%`, or `off` where nothing holds them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeBudget(Option<u32>);

/// A regular expression that has to match all of a text.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl ProbeBudget {
    /// The share of one CPU; None where there is no limit.
    pub fn share(self) -> Option<f64> {
        self.0.map(|hundredths| f64::from(hundredths) / 10_000.0)
    }
}

impl Default for ProbeBudget {
    fn default() -> Self {
        Self(Some(100))
    }
}

impl Pattern {
    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => humantime::parse_duration(text)
                .map_err(|_| format!("{text:?} is no length of time: write 60s or 5m"))?,
        };
        match duration >= Duration::from_secs(1) && duration <= MAX_PERIOD {
            true => Ok(Self(duration)),
            false => Err("must be between 1s and 1h".into()),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
        let (unit, factor) = unit.copied().unwrap_or(("", 1));
        let number = text.strip_suffix(unit).unwrap_or(text).trim_end();
        let bytes = number.parse::<u64>().ok();
        let bytes = bytes.and_then(|number| number.checked_mul(factor));
        bytes
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size: write 128MiB or 1GiB"))
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<u32>()
            .ok()
            .filter(|rate| (1..=MAX_RATE_HZ).contains(rate))
            .map(Self)
            .ok_or_else(|| format!("must be a whole number from 1 to {MAX_RATE_HZ}"))
    }
}

impl FromStr for ProbeBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let number = text.strip_suffix('%').map(str::trim_end);
        let number = number.and_then(|number| number.parse::<f64>().ok());
        // Of a NaN it is 0.
        let hundredths = number.map(|percent| (percent * 100.0).round() as u32);
        hundredths
            .filter(|hundredths| (1..=10_000).contains(hundredths))
            .map(|hundredths| Self(Some(hundredths)))
            .ok_or_else(|| "must be a share of a CPU from 0.01% to 100%, or off".to_owned())
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let regex = Regex::new(&format!("^(?:{text})$"));
        // The whole report has several lines.
        let regex = regex.map_err(|error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let last = last.trim_start_matches("error: ");
            format!("no regular expression: {last}")
        })?;
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        let (unit, factor) = UNITS.iter().find(fits).copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl fmt::Display for ProbeBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hundredths) => write!(f, "{}%", f64::from(hundredths) / 100.0),
            None => f.write_str("off"),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads text, or the number that it may be, as a `T`.
struct Parsed<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> de::Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

macro_rules! read_and_write {
    ($($name:ident)*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_any(Parsed::<$name>(std::marker::PhantomData))
            }
        }
    )*};
}
read_and_write! { Period Bytes Rate ProbeBudget Pattern }

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.0)
    }
}

impl Serialize for ProbeBudget {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_written_as_they_are_read() {
        for text in ["128MiB", "1GiB", "1023B", "3KiB"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
        assert_eq!("1024MiB".parse::<Bytes>().unwrap().to_string(), "1GiB");
        for text in ["1%", "0.25%", "100%", "off"] {
            assert_eq!(text.parse::<ProbeBudget>().unwrap().to_string(), text);
        }
        let shares = ["2.5 %", "off"].map(|text| text.parse::<ProbeBudget>().unwrap().share());
        assert_eq!(shares, [Some(0.025), None]);
        assert_eq!(ProbeBudget::default().to_string(), "1%");
        assert_eq!("90".parse::<Period>().unwrap().to_string(), "1m 30s");
        assert_eq!("1m 30s".parse(), "90s".parse::<Period>());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "MiB", "1.5MiB", "-1", "99999999999GiB", "1 parsec"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["0", "0.1s", "2h", "soon", ""] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        for text in ["0", "1001", "-1", "19.5", ""] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        for text in ["", "1", "0%", "-1%", "101%", "NaN%", "on", "0.001%", "%"] {
            assert!(text.parse::<ProbeBudget>().is_err(), "{text}");
        }
        let error = "a(".parse::<Pattern>().unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        let pattern: Pattern = "a|b.*".parse().unwrap();
        assert!(pattern.is_match("a") && pattern.is_match("bc"));
        assert!(!pattern.is_match("ab") && !pattern.is_match(""));
    }
}
