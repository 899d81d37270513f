//! The agent's log: lines of `key=value` on stderr. Whatever a value holds, a
//! line stays one line, of bounded length.

use std::{
    fmt::{Display, Write as _},
    time::SystemTime,
};

/// Most bytes of a value.
const MAX_VALUE_BYTES: usize = 512;

/// Takes what the rest of goprof has to say; says nothing of what libraries do.
pub fn take_over() {
    // Fails where it was done before.
    if ::log::set_logger(&Own).is_ok() {
        ::log::set_max_level(::log::LevelFilter::Info);
    }
}

struct Own;

impl ::log::Log for Own {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        metadata.target().starts_with("goprof")
    }

    fn log(&self, record: &::log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        match record.level() {
            ::log::Level::Error | ::log::Level::Warn => warn(&message, &[]),
            _ => info(&message, &[]),
        }
    }

    fn flush(&self) {}
}

/// All is as it should be.
pub fn info(message: &str, values: &[(&str, &dyn Display)]) {
    eprintln!("{}", line(SystemTime::now(), "info", message, values));
}

/// Something is missing, and the agent goes on.
pub fn warn(message: &str, values: &[(&str, &dyn Display)]) {
    eprintln!("{}", line(SystemTime::now(), "warn", message, values));
}

fn line(time: SystemTime, level: &str, message: &str, values: &[(&str, &dyn Display)]) -> String {
    let time = humantime::format_rfc3339_millis(time);
    let mut line = format!("time={time} level={level} msg={}", quoted(message));
    for (key, value) in values {
        // Writing to a string cannot fail.
        let _ = write!(line, " {key}={}", quoted(&value.to_string()));
    }
    line
}

/// A value as it is where it is a plain word, else in quotes with all that a
/// terminal or a parser might take for more than text escaped.
fn quoted(value: &str) -> String {
    let end = value.floor_char_boundary(MAX_VALUE_BYTES);
    let cut = if end < value.len() { "…" } else { "" };
    let value = &value[..end];
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:+@%,".contains(c);
    if cut.is_empty() && !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            // Letters of other scripts; not what reorders or hides text.
            c if c.is_alphanumeric() => text.push(c),
            c => text.extend(c.escape_unicode()),
        }
    }
    text + cut + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_they_need_it() {
        let time = SystemTime::UNIX_EPOCH;
        let line = line(
            time,
            "info",
            "window done",
            &[("pid", &7), ("exe", &"/a b")],
        );
        assert_eq!(
            line,
            "time=1970-01-01T00:00:00.000Z level=info msg=\"window done\" pid=7 exe=\"/a b\""
        );
    }

    #[test]
    fn hostile_values_stay_in_their_place() {
        let hostile = "a\" level=error\nx=\u{1b}[2J\u{202e}";
        let text = quoted(hostile);
        assert_eq!(text, r#""a\" level=error\u{a}x=\u{1b}[2J\u{202e}""#);
        assert!(quoted(&"x".repeat(10_000)).len() < 600);
        assert_eq!(quoted(""), "\"\"");
    }
}
