//! Programs under test that do one thing at a time, as they are told by lines on
//! their standard input, and say when they are done.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// A program that listens. Dropping it ends it.
pub struct Talker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Talker {
    /// Starts a program and waits for its ready line.
    #[track_caller]
    pub fn start(binary: &Path, args: &[&str]) -> Self {
        Self::start_command(Command::new(binary).args(args))
    }

    /// The same for a command with more than arguments.
    #[track_caller]
    pub fn start_command(command: &mut Command) -> Self {
        if !command.get_args().any(|argument| argument == "-duration") {
            command.args(["-duration", "5m"]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let output = child.stdout.take().expect("a pipe was asked for");
        let mut talker = Talker {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        };
        assert_eq!(talker.line(), "ready");
        talker
    }

    /// Tells it something and returns what it says once it is done.
    #[track_caller]
    pub fn tell(&mut self, words: &str) -> String {
        let input = self.input.as_mut().expect("a pipe was asked for");
        writeln!(input, "{words}").expect("talk to the program");
        let answer = self.line();
        match answer.strip_prefix("done") {
            Some(rest) => rest.trim().to_owned(),
            None => panic!("{words}: {answer}"),
        }
    }

    /// Tells it something that ends it, and waits until it has ended.
    #[track_caller]
    pub fn end(&mut self, words: &str) -> ExitStatus {
        let input = self.input.as_mut().expect("a pipe was asked for");
        writeln!(input, "{words}").expect("talk to the program");
        self.child.wait().expect("wait for the program")
    }

    /// Ends it by force, and waits until it has ended.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .expect("listen to the program");
        assert!(!line.is_empty(), "the program ended");
        line.trim_end().to_owned()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process id as an argument.
    pub fn pid_arg(&self) -> String {
        self.pid().to_string()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.stop();
    }
}
