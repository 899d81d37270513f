//! The results as people read them: a table on the terminal, the same in the
//! documentation, and JSON. It measures nothing.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::machine::Machine;
use super::stats::Summary;

/// Between these lines of the documentation stand the last results.
const MARKERS: [&str; 2] = ["<!-- bench:begin -->\n", "<!-- bench:end -->"];

/// One measured thing.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Its name in the JSON; it stays what it is.
    pub id: String,
    /// What it is, for people.
    pub what: String,
    /// "ratio", "ms", "ns", "kB", "MiB", "%", "per s" or what is counted.
    pub unit: &'static str,
    /// What it is meant to be. Nothing fails where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<&'static str>,
    /// What it was.
    #[serde(flatten)]
    pub summary: Summary,
}

impl Figure {
    /// A figure without a goal.
    pub fn new(id: impl Into<String>, what: &str, unit: &'static str, summary: Summary) -> Self {
        Self {
            id: id.into(),
            what: what.to_owned(),
            unit,
            goal: None,
            summary,
        }
    }

    /// The same, with what it is meant to be.
    pub fn goal(self, goal: &'static str) -> Self {
        Self {
            goal: Some(goal),
            ..self
        }
    }

    fn row(&self) -> [String; 5] {
        let show = |value| show(value, self.unit);
        [
            self.what.clone(),
            show(self.summary.median),
            format!("{} .. {}", show(self.summary.min), show(self.summary.max)),
            self.unit.to_owned(),
            self.goal.unwrap_or_default().to_owned(),
        ]
    }
}

/// Figures that were measured together.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// How they were measured, in sentences.
    pub method: String,
    /// Most important first.
    pub figures: Vec<Figure>,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// On what and with what.
    pub machine: Machine,
    /// Whether the runs were short, and the figures rough.
    pub quick: bool,
    /// In the order measured.
    pub sections: Vec<Section>,
}

const HEADINGS: [&str; 5] = ["", "median", "min .. max", "unit", "goal"];

impl Report {
    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = self.heading();
        for section in &self.sections {
            let rows: Vec<[String; 5]> = std::iter::once(HEADINGS.map(str::to_owned))
                .chain(section.figures.iter().map(Figure::row))
                .collect();
            let width = |column: usize| {
                let lengths = rows.iter().map(|row| row[column].chars().count());
                lengths.max().unwrap_or(0)
            };
            let widths: [usize; 5] = std::array::from_fn(width);
            // Writing to a string cannot fail.
            let _ = writeln!(table, "\n{}\n  {}\n", section.title, section.method);
            for [what, median, range, unit, goal] in &rows {
                let line = format!(
                    "  {what:<0$}  {median:>1$}  {range:>2$}  {unit:<3$}  {goal}",
                    widths[0], widths[1], widths[2], widths[3]
                );
                let _ = writeln!(table, "{}", line.trim_end());
            }
        }
        table
    }

    fn heading(&self) -> String {
        let Machine {
            cpu,
            cpus,
            kernel,
            goprof,
            go,
            perf,
            stolen_share,
            load_before,
        } = &self.machine;
        let rough = if self.quick {
            " Quick run: rough figures."
        } else {
            ""
        };
        format!(
            "{cpu}, {cpus} CPUs, Linux {kernel}; goprof {goprof}, {go}, perf {perf}. \
             Load before: {load_before:.2}; CPU time stolen by the hypervisor meanwhile: {:.2}%.{rough}\n",
            stolen_share * 100.0
        )
    }

    fn markdown(&self) -> String {
        let mut text = self.heading();
        for section in &self.sections {
            let _ = writeln!(text, "\n### {}\n\n{}\n", section.title, section.method);
            let _ = writeln!(text, "|{}|\n|-|-:|-:|-|-|", HEADINGS.join("|"));
            for figure in &section.figures {
                let _ = writeln!(text, "| {} |", figure.row().join(" | "));
            }
        }
        text
    }

    /// Puts the results into the document at `path`, in place of the last ones.
    pub fn write_into(&self, path: &Path) -> Result<()> {
        let document =
            fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let changed = replace(&document, &self.markdown())
            .with_context(|| format!("write the results into {}", path.display()))?;
        fs::write(path, changed).with_context(|| format!("write {}", path.display()))
    }
}

/// `document` with `results` between the markers.
fn replace(document: &str, results: &str) -> Result<String> {
    let [begin, end] = MARKERS;
    let Some((before, rest)) = document.split_once(begin) else {
        bail!("it has no line {begin}");
    };
    let Some((_, after)) = rest.split_once(end) else {
        bail!("it has no {end} after {begin}");
    };
    Ok(format!("{before}{begin}{results}{end}{after}"))
}

/// Digits enough to tell runs apart, and no more.
fn show(value: f64, unit: &str) -> String {
    let places = match unit {
        _ if !value.is_finite() => return "none".to_owned(),
        "%" => 3,
        "MiB" => 1,
        "ratio" if value.abs() < 0.1 => 4,
        "ratio" if value.abs() < 10.0 => 3,
        "ms" if value.abs() < 1.0 => 3,
        "ratio" | "ms" if value.abs() < 100.0 => 1,
        _ => 0,
    };
    let digits = format!("{value:.places$}");
    if places > 0 {
        return digits;
    }
    let mut grouped = String::new();
    let (sign, digits) = digits.split_at(usize::from(digits.starts_with('-')));
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_as_many_digits_as_tell_runs_apart() {
        assert_eq!(show(0.99312, "ratio"), "0.993");
        assert_eq!(show(0.04567, "ratio"), "0.0457");
        assert_eq!(show(41.26, "ratio"), "41.3");
        assert_eq!(show(0.1234, "ms"), "0.123");
        assert_eq!(show(0.1234, "%"), "0.123");
        assert_eq!(show(97.26, "MiB"), "97.3");
        assert_eq!(show(1_234_567.8, "per s"), "1,234,568");
        assert_eq!(show(-1234.0, "ns"), "-1,234");
        assert_eq!(show(999.0, "ns"), "999");
        assert_eq!(show(f64::NAN, "ns"), "none");
    }

    #[test]
    fn results_replace_results() {
        let [begin, end] = MARKERS;
        let document = format!("a\n{begin}old\n{end}\nb\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("a\n{begin}new\n{end}\nb\n"));
        assert_eq!(replace(&once, "new\n").unwrap(), once);
        assert!(replace("nothing", "new\n").is_err());
        assert!(replace(&format!("{end}{begin}"), "new\n").is_err());
    }
}
