//! A finished command: its exit status and both of its streams, as text. It judges nothing by itself; whoever asserts
//! something about it gets all of it in the message.

use serde_json::Value;
use std::{
    fmt,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output},
};

/// Exit status and output of a command that has come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedProcess {
    /// Exit status; 128 + n when ended by signal n, as a shell says it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl CompletedProcess {
    /// Runs a command to its end. Panics if it cannot be started.
    #[track_caller]
    pub fn run(command: &mut Command) -> Self {
        match command.output() {
            Ok(out) => out.into(),
            Err(e) => panic!("running {command:?}: {e}"),
        }
    }

    /// Standard output and then standard error, for what may be in either.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }

    /// Parses standard output, which must be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert!(!self.stdout.contains(char::REPLACEMENT_CHARACTER), "standard output is not UTF-8\n{self}");
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(e) => panic!("standard output is no JSON: {e}\n{self}"),
        }
    }

    /// Asserts the exit status.
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Self {
        assert!(self.code == code, "expected to end with {code}\n{self}");
        self
    }

    /// Asserts that this is somewhere on standard output.
    #[track_caller]
    pub fn assert_stdout(&self, part: &str) -> &Self {
        assert!(self.stdout.contains(part), "{part:?} is not on standard output\n{self}");
        self
    }

    /// Asserts that this is somewhere on standard error.
    #[track_caller]
    pub fn assert_stderr(&self, part: &str) -> &Self {
        assert!(self.stderr.contains(part), "{part:?} is not on standard error\n{self}");
        self
    }
}

impl From<Output> for CompletedProcess {
    fn from(out: Output) -> Self {
        let code = out.status.code().unwrap_or_else(|| 128 + out.status.signal().unwrap_or_default());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code, stdout: text(out.stdout), stderr: text(out.stderr) }
    }
}

/// Everything, for the message of a failed assertion.
impl fmt::Display for CompletedProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, stdout, stderr } = self;
        write!(f, "ended with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}
