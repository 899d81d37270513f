//! What the kernels gave: lines on the terminal, and tables in the documentation. A
//! kernel fails if one of its programs is refused or one case is not as it must be.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::cases::Case;
use super::console::{Section, sections};
use super::guest::{DOCTOR, RELEASE, name_of};
use super::kernels::{Arch, Kernel};

/// A program, and what the verifier made of it.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    is_accepted: bool,
    /// How many instructions it looked at, or why not.
    verdict: String,
}

/// What a case came to.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    /// What was seen; what is missing where the kernel is too old; or what is wrong.
    text: String,
    is_right: bool,
}

/// What one kernel gave.
#[derive(Debug)]
pub struct Outcome {
    release: String,
    programs: Vec<Program>,
    results: Vec<Finding>,
}

impl Outcome {
    /// Judges what a kernel wrote on its console.
    pub fn of(kernel: &Kernel, arch: Arch, cases: &[&Case], console: &str) -> Self {
        let sections = sections(console);
        let find = |name: &str| sections.iter().find(|section| section.name == name);
        let release = find(RELEASE).map(|section| section.output.trim().to_owned());
        let release = release.unwrap_or_else(|| format!("{} ({})", kernel.series, arch.name()));
        let version = version(&release);
        let programs = find(DOCTOR).map(programs).unwrap_or_default();
        let judge = |case: &&Case| {
            let verdict = match find(case.name) {
                _ if case.lacking == Some(arch) => Ok(format!(
                    "not tried: Debian's kernels for {} have no {}",
                    arch.go(),
                    case.modules
                        .last()
                        .copied()
                        .map(name_of)
                        .unwrap_or_default()
                )),
                None => Err("the machine ended before it".to_owned()),
                Some(section) => judge(case, section, version),
            };
            Finding {
                name: case.name,
                is_right: verdict.is_ok(),
                text: verdict.unwrap_or_else(|error| error),
            }
        };
        Self {
            release,
            programs,
            results: cases.iter().map(judge).collect(),
        }
    }

    /// Writes it to the terminal.
    pub fn print(&self) {
        for program in &self.programs {
            println!("{}  {}: {}", self.release, program.name, program.verdict);
        }
        for result in &self.results {
            let word = if result.is_right { "ok" } else { "WRONG" };
            println!("{}  {word} {}: {}", self.release, result.name, result.text);
        }
    }

    fn faults(&self) -> usize {
        let results = self.results.iter().filter(|result| !result.is_right);
        // Which programs an old kernel may refuse, the cases say.
        results.count() + usize::from(self.programs.is_empty())
    }
}

/// Major and minor.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    next().zip(next()).unwrap_or_default()
}

/// What `goprof doctor --json` says of the programs.
fn programs(section: &Section) -> Vec<Program> {
    let report: serde_json::Value = serde_json::from_str(&section.output).unwrap_or_default();
    let checks = report["system"].as_array().cloned().unwrap_or_default();
    let found = checks.iter().find(|check| check["id"] == "programs");
    let found = found.and_then(|check| check["found"].as_str());
    let list = found.and_then(|text| text.strip_prefix("verified: "));
    let program = |words: &str| {
        let (name, verdict) = words.trim_end_matches(')').split_once(" (")?;
        let accepted = name.strip_suffix(" REFUSED");
        Some(Program {
            name: accepted.unwrap_or(name).to_owned(),
            is_accepted: accepted.is_none(),
            verdict: verdict.to_owned(),
        })
    };
    list.unwrap_or_default()
        .split("), ")
        .filter_map(program)
        .collect()
}

fn judge(case: &Case, section: &Section, version: (u32, u32)) -> Result<String, String> {
    let said = section.said.trim();
    if version < case.since {
        // Too old: it must end with one line that says so.
        let is_clear = section.code == 1 && said.lines().count() == 1 && said.contains("Linux");
        return match is_clear {
            true => Ok(format!("cannot be done here: {said}")),
            false => Err(format!(
                "it should say that it needs a newer kernel; {said}"
            )),
        };
    }
    if section.code != 0 {
        return Err(format!("exit code {}; {said}", section.code));
    }
    (case.judge)(section).map_err(|error| format!("{error:#}"))
}

/// The outcomes of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// One of each kernel, the oldest first.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Writes the tables of `arch` between their marks in the documentation.
    pub fn write(&self, path: &Path, arch: Arch) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let [begin, end] =
            ["begin", "end"].map(|mark| format!("<!-- vm:{}:{mark} -->", arch.name()));
        let places = text.find(&begin).zip(text.find(&end));
        let Some((from, to)) = places.filter(|(from, to)| from < to) else {
            bail!("{} has lost its marks {begin} and {end}", path.display());
        };
        let (before, after) = (&text[..from + begin.len()], &text[to..]);
        fs::write(path, format!("{before}\n{}{after}", self.tables()))
            .with_context(|| format!("write {}", path.display()))
    }

    fn tables(&self) -> String {
        let mut text =
            "| Kernel | Program | Verdict | Instructions verified |\n|-|-|-|-|\n".to_owned();
        for outcome in &self.outcomes {
            for program in &outcome.programs {
                let (verdict, count) = match program.is_accepted {
                    true => ("accepted", program.verdict.replace(" instructions", "")),
                    false => ("refused", program.verdict.clone()),
                };
                let name = &program.name;
                let _ = writeln!(
                    text,
                    "| {} | `{name}` | {verdict} | {count} |",
                    outcome.release
                );
            }
        }
        text.push_str("\n| Kernel | Case | Result | What was seen |\n|-|-|-|-|\n");
        for outcome in &self.outcomes {
            for result in &outcome.results {
                let word = if result.is_right { "ok" } else { "wrong" };
                let seen = result.text.lines().next().unwrap_or_default();
                let Finding { name, .. } = result;
                let _ = writeln!(text, "| {} | {name} | {word} | {seen} |", outcome.release);
            }
        }
        text
    }

    /// Fails if a kernel did.
    pub fn verdict(&self, logs: &Path) -> Result<()> {
        let faults: usize = self.outcomes.iter().map(Outcome::faults).sum();
        match faults {
            0 => Ok(()),
            faults => bail!(
                "{faults} are not as they must be; consoles are in {}",
                logs.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_what_doctor_says() {
        let found = "verified: cpu_sample REFUSED (unknown func bpf_loop#181), \
             sched_process_exec (520 instructions)";
        let report = serde_json::json!({"system": [{"id": "programs", "found": found}]});
        let read = programs(&Section {
            name: "doctor".to_owned(),
            output: report.to_string(),
            said: String::new(),
            told: String::new(),
            code: 0,
        });
        let facts = read
            .iter()
            .map(|p| (p.name.as_str(), p.is_accepted, p.verdict.as_str()));
        let facts: Vec<_> = facts.collect();
        assert_eq!(
            facts,
            [
                ("cpu_sample", false, "unknown func bpf_loop#181"),
                ("sched_process_exec", true, "520 instructions")
            ]
        );
    }

    #[test]
    fn releases_have_versions() {
        assert_eq!(version("6.12.117+deb13-cloud-amd64"), (6, 12));
        assert_eq!(version("?"), (0, 0));
    }
}
