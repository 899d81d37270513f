//! Where in a configuration file an error lies: its line, and the key as one
//! would write it from the root. Judges no value itself.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// What is wrong, on one line that begins with the line's number and the key.
pub(super) fn describe(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    let Some(span) = error.span() else {
        return message;
    };
    let line = line(text, span.start);
    match key(text, &span).or_else(|| word_before(text, line)) {
        Some(key) => format!("line {line}: {key}: {message}"),
        None => format!("line {line}: {message}"),
    }
}

/// What is wrong with the value of a key.
pub(super) fn describe_key(text: &str, key: &str, why: &str) -> String {
    match key_start(text, key) {
        Some(start) => format!("line {}: {key}: {why}", line(text, start)),
        None => format!("{key}: {why}"),
    }
}

/// The number of the line that holds a byte.
fn line(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// What stands before `=` in a line, of text that is no TOML as a whole.
fn word_before(text: &str, line: usize) -> Option<String> {
    let (word, _) = text.lines().nth(line - 1)?.split_once('=')?;
    let is_key = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let word = word.trim();
    (!word.is_empty() && word.chars().all(is_key)).then(|| word.to_owned())
}

/// Where a key of the root or of a table stands, such as `store.url` and
/// `push[1].url`; where it is not there, what would hold it.
fn key_start(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut start = None;
    for part in key.split('.') {
        let (name, index) = part.split_once('[').unwrap_or((part, ""));
        let Some((found, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else {
            break;
        };
        start = Some(found.span().start);
        let index = index.trim_end_matches(']').parse::<usize>();
        let value = match (value.get_ref(), index) {
            (DeValue::Array(array), Ok(index)) => {
                let element = array.get(index)?;
                start = Some(element.span().start);
                element.get_ref()
            }
            (value, _) => value,
        };
        match value {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    start
}

/// The key that holds a part of the text; none where that is no TOML at all.
fn key(text: &str, span: &Range<usize>) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let mut path = String::new();
    in_table(root.get_ref(), span, &mut path);
    (!path.is_empty()).then_some(path)
}

fn in_table(table: &DeTable<'_>, span: &Range<usize>, path: &mut String) {
    for (key, value) in table {
        let is_key = key.span().start <= span.start && span.end <= key.span().end;
        if !is_key && !holds(value.get_ref(), &value.span(), span) {
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.extend(key.get_ref().chars().map(plain));
        if !is_key {
            in_value(value.get_ref(), span, path);
        }
        return;
    }
}

fn in_value(value: &DeValue<'_>, span: &Range<usize>, path: &mut String) {
    match value {
        DeValue::Table(table) => in_table(table, span, path),
        DeValue::Array(array) => {
            let found = array
                .iter()
                .enumerate()
                .find(|(_, value)| holds(value.get_ref(), &value.span(), span));
            if let Some((index, value)) = found {
                path.push_str(&format!("[{index}]"));
                in_value(value.get_ref(), span, path);
            }
        }
        _ => {}
    }
}

/// Whether a part of the text lies in a value. The span of a table with a
/// heading is that of the heading alone.
fn holds(value: &DeValue<'_>, own: &Range<usize>, span: &Range<usize>) -> bool {
    let inside = own.start <= span.start && span.end <= own.end;
    inside
        || match value {
            DeValue::Table(table) => table.iter().any(|(key, value)| {
                let is_key = key.span().start <= span.start && span.end <= key.span().end;
                is_key || holds(value.get_ref(), &value.span(), span)
            }),
            DeValue::Array(array) => array
                .iter()
                .any(|value| holds(value.get_ref(), &value.span(), span)),
            _ => false,
        }
}

fn plain(c: char) -> char {
    if c.is_control() { '?' } else { c }
}

#[cfg(test)]
mod tests {
    use crate::agent::config::Config;

    #[track_caller]
    fn check(text: &str, begins: &str) {
        let error = Config::parse(text).unwrap_err();
        assert!(error.starts_with(begins), "{error:?} for {text:?}");
        assert_eq!(error.lines().count(), 1, "{error:?}");
    }

    #[test]
    fn names_line_and_key() {
        check("rate = 3\n", "line 1: rate: unknown field `rate`, expected");
        check(
            "\n[store]\nflsh = 3\n",
            "line 3: store.flsh: unknown field `flsh`, expected",
        );
        check("\nrate_hz = 0\n", "line 2: rate_hz: must be a whole number");
        check("rate_hz = true\n", "line 1: rate_hz: invalid type: boolean");
        check(
            "[http]\nlisten = \"here\"\n",
            "line 2: http.listen: invalid socket address",
        );
        check(
            "store = { url = \"x\",\n  path = 1 }\n",
            "line 2: store.path: unknown field",
        );
    }

    #[test]
    fn names_the_rule() {
        let text = "[[rules]]\nevent = \"cpu\"\n\n[[rules]]\nevent = \"heat\"\n";
        check(text, "line 5: rules[1].event: unknown variant `heat`");
        let text = "[[rules]]\n[[rules.include]]\nnamespace = \"a(\"\n";
        check(
            text,
            "line 3: rules[0].include[0].namespace: no regular expression",
        );
        check(
            "[[rules]]\nexclude = [{ pid = 3 }]\n",
            "line 2: rules[0].exclude[0].pid: unknown field `pid`",
        );
    }

    #[test]
    fn what_is_no_toml_has_a_line() {
        check("rate_hz = 19\nstore = [\n", "line ");
        check("= 1\n", "line 1: ");
        check("rate_hz = 19\nrate_hz = 20\n", "line 2: rate_hz: ");
    }
}
