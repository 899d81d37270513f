//! Reads back from a console's text what `guest` had written there.

use anyhow::{Context, Result};

use super::guest::{BEGIN, END, SAID, TOLD};

/// What one command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub said: String,
    /// What the program that was there before it wrote so far, and before and after it
    /// what the kernel had counted of block devices.
    pub told: String,
    /// What it exited with.
    pub code: i32,
}

impl Section {
    /// For how long goprof says that it has recorded, in seconds: on a slow machine that
    /// is longer than it was told to.
    pub fn recorded_seconds(&self) -> Result<f64> {
        let mut words = self.said.split_whitespace();
        let seconds = std::iter::from_fn(|| {
            words.find(|word| *word == "in")?;
            Some(words.clone().next().and_then(|word| word.parse().ok()))
        });
        let seconds = seconds.flatten().next();
        seconds.with_context(|| format!("it does not say how long it recorded: {}", self.said))
    }
}

/// A part of a section.
enum Part {
    Output,
    Said,
    Told,
}

/// The sections that were written to their end.
pub fn sections(console: &str) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut open: Option<Section> = None;
    let mut part = Part::Output;
    for line in console.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some((_, name)) = line.split_once(BEGIN) {
            part = Part::Output;
            open = Some(Section {
                name: name.to_owned(),
                output: String::new(),
                said: String::new(),
                told: String::new(),
                code: -1,
            });
        } else if line == SAID {
            part = Part::Said;
        } else if line == TOLD {
            part = Part::Told;
        } else if let Some(code) = line.strip_prefix(END) {
            if let Some(mut section) = open.take() {
                section.code = code.parse().unwrap_or(-1);
                sections.push(section);
            }
        } else if let Some(section) = &mut open {
            let text = match part {
                Part::Output => &mut section.output,
                Part::Said => &mut section.said,
                Part::Told => &mut section.told,
            };
            text.push_str(line);
            text.push('\n');
        }
    }
    sections
}

/// A stack of the folded format.
#[derive(Debug, PartialEq, Eq)]
pub struct Stack<'a> {
    /// Its frames, the outermost first, after the name of the process.
    pub frames: Vec<&'a str>,
    /// Its value.
    pub value: u64,
}

impl Stack<'_> {
    /// Whether a function is on it.
    pub fn has(&self, function: &str) -> bool {
        self.frames.contains(&function)
    }

    /// The frames of the program, without the kernel's.
    pub fn user(&self) -> impl Iterator<Item = &str> {
        let frames = self.frames.iter().copied();
        frames.filter(|frame| !frame.ends_with("_[k]"))
    }

    /// Whether it goes on in the kernel.
    pub fn is_in_kernel(&self) -> bool {
        self.frames
            .last()
            .is_some_and(|last| last.ends_with("_[k]"))
    }
}

/// The stacks of what `-f folded` writes.
pub fn stacks(folded: &str) -> Vec<Stack<'_>> {
    let stack = |line| -> Option<Stack<'_>> {
        let (stack, value) = str::rsplit_once(line, ' ')?;
        Some(Stack {
            frames: stack.split(';').skip(1).collect(),
            value: value.parse().ok()?,
        })
    };
    folded.lines().filter_map(stack).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_as_they_were_written() {
        let console = "BIOS\r\n\x1b[2J@@begin cpu\r\na;main.main 3\r\n@@said\r\n3 samples in 2.5 s\r\n\
             @@told\r\nready\r\n@@end 0\r\n@@begin cut\r\nno end";
        let read = sections(console);
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].name.as_str(), read[0].code), ("cpu", 0));
        assert_eq!(read[0].output, "a;main.main 3\n");
        assert_eq!(read[0].said, "3 samples in 2.5 s\n");
        assert_eq!(read[0].recorded_seconds().unwrap(), 2.5);
        assert_eq!(read[0].told, "ready\n");
    }

    #[test]
    fn stacks_have_frames_and_a_value() {
        let read = stacks("a;main.main;main.read;vfs_read_[k] 3\nnothing\n");
        assert_eq!(read.len(), 1);
        assert!(read[0].has("main.read") && read[0].is_in_kernel());
        assert_eq!(read[0].user().count(), 2);
        assert_eq!(read[0].value, 3);
    }
}
