//! The page of processes. Whatever a process calls itself stays text in its cell.

use std::fmt::Write as _;

use crate::{
    agent::state::{ProcessView, View},
    identity::label,
};

/// Most characters of a cell.
const MAX_CELL: usize = 200;

const HEAD: &str = "<!doctype html>
<html lang=\"en\"><meta charset=\"utf-8\"><title>goprof: targets</title>
<meta name=\"viewport\" content=\"width=device-width\">
<style>
body { font: 14px system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }
table { border-collapse: collapse; margin-top: 1em }
th, td { text-align: left; padding: .25em .75em; border-bottom: 1px solid #ddd; vertical-align: top }
td { max-width: 28em; overflow-wrap: anywhere }
.off { color: #a40000 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b } th, td { border-color: #444 } .off { color: #ff9a8d }
}
</style>
<h1>Targets</h1>
";
const COLUMNS: &str = "<table><tr><th>pid<th>service<th>namespace / pod / container\
    <th>Go<th>program<th>collected<th>notes</tr>\n";

pub(super) fn of(view: &View) -> String {
    let mut page = HEAD.to_owned();
    let sampled = view.processes.iter().filter(|p| !p.collected.is_empty());
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        page,
        "<p>{} Go processes are sampled, {} are not; {} other processes are left alone.",
        sampled.clone().count(),
        view.processes.len() - sampled.count(),
        view.other_processes,
    );
    for source in &view.sources {
        let state = match (&source.error, source.has_answered) {
            (Some(error), _) => format!("does not answer: {error}"),
            (None, true) => format!("names {} containers", source.containers),
            (None, false) => "has not answered yet".into(),
        };
        let _ = writeln!(page, "<p>{}: {}", escape(source.name), escape(&state));
    }
    page.push_str(COLUMNS);
    for process in &view.processes {
        row(&mut page, process);
    }
    page.push_str("</table>\n");
    page
}

fn row(page: &mut String, process: &ProcessView) {
    let label = |name| process.labels.get(name).map_or("", String::as_str);
    let place: Vec<&str> = [label::NAMESPACE, label::POD, label::CONTAINER]
        .into_iter()
        .map(label)
        .filter(|part| !part.is_empty())
        .collect();
    let place = match (place.join(" / "), process.is_partial) {
        (place, true) => format!("{place} (more may come)"),
        (place, false) => place,
    };
    let collected: Vec<String> = process
        .collected
        .iter()
        .map(|collected| match collected.rate_hz {
            Some(rate_hz) => format!("{} {rate_hz} Hz", collected.event),
            None => collected.event.to_owned(),
        })
        .collect();
    let program = match process.exe.as_str() {
        "" => &process.comm,
        exe => exe,
    };
    let _ = write!(page, "<tr><td>{}", process.pid);
    for cell in [
        label(label::SERVICE_NAME),
        &place,
        label(label::GO_VERSION),
        program,
        &collected.join(", "),
    ] {
        let _ = write!(page, "<td>{}", escape(cell));
    }
    let _ = writeln!(
        page,
        "<td class=off>{}</tr>",
        escape(&process.notes.join("; "))
    );
}

/// Text that is no markup, on one line and of bounded length.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars().take(MAX_CELL) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // What would reorder or hide text shows as what it is.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                escaped.extend(c.escape_unicode());
            }
            c => escaped.push(c),
        }
    }
    if text.chars().nth(MAX_CELL).is_some() {
        escaped.push('…');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::state::Collected;

    #[test]
    fn hostile_names_stay_text() {
        let long = "x".repeat(10_000);
        let hostile = [
            "<script>alert(1)</script>",
            "\"'><img src=x>",
            "a\n\u{202e}b",
            &long,
        ];
        for name in hostile {
            let view = View {
                processes: vec![ProcessView {
                    pid: 7,
                    comm: name.into(),
                    exe: name.into(),
                    labels: [
                        (label::SERVICE_NAME, name.to_owned()),
                        (label::POD, name.into()),
                    ]
                    .into(),
                    notes: vec![name.into()],
                    ..ProcessView::default()
                }],
                ..View::default()
            };
            let page = of(&view);
            let rows = page.split_once("</tr>\n").unwrap().1;
            assert!(
                !rows.contains("<script") && !rows.contains("<img"),
                "{rows}"
            );
            assert_eq!(rows.lines().count(), 2, "{rows}");
            assert!(page.len() < 5_000);
        }
    }

    #[test]
    fn says_what_is_collected() {
        let view = View {
            processes: vec![ProcessView {
                pid: 7,
                collected: vec![Collected {
                    event: "cpu",
                    rate_hz: Some(19),
                }],
                ..ProcessView::default()
            }],
            other_processes: 5,
            ..View::default()
        };
        let page = of(&view);
        assert!(page.contains("cpu 19 Hz"));
        assert!(page.contains("1 Go processes are sampled, 0 are not; 5 other"));
    }
}
