//! The only voice: progress, tables, errors with hints, and `--json`. Results go to standard output, everything
//! said on the way to standard error. On a terminal a step is a live line that collapses to a tick, and of several
//! at once the one that began first is shown; without a terminal it is one plain line when it ends.

use crate::host::System;
use anyhow::Error;
use std::{
    collections::HashMap,
    fmt,
    io::{IsTerminal as _, Write as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// Apart from what went wrong: what to try.
#[derive(Debug)]
pub struct Hint(pub String);

/// The exit status this error ends in, where it is not 1.
#[derive(Debug)]
pub struct Code(pub u8);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

/// Attach a hint to an error on its way up.
pub trait Try<T> {
    fn or_try(self, hint: impl fmt::Display) -> anyhow::Result<T>;

    /// As `or_try`, for a hint that takes work to find.
    fn or_find(self, hint: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> Try<T> for Result<T, E> {
    fn or_find(self, hint: impl FnOnce() -> String) -> anyhow::Result<T> {
        match self {
            Ok(it) => Ok(it),
            error => error.or_try(hint()),
        }
    }

    /// Beside a hint that is there already: whoever stood nearer to the fault comes first.
    fn or_try(self, hint: impl fmt::Display) -> anyhow::Result<T> {
        self.map_err(|e| {
            let error = e.into();
            let nearer = error.downcast_ref::<Hint>().map(|Hint(nearer)| format!("{nearer}\n"));
            error.context(Hint(format!("{}{hint}", nearer.unwrap_or_default())))
        })
    }
}

/// What went wrong, the widest first, and apart from it what to try.
pub fn told(error: &Error) -> (Vec<String>, Option<&str>) {
    let code = error.downcast_ref::<Code>().map(ToString::to_string);
    let hint = error.downcast_ref::<Hint>().map(|Hint(hint)| hint.as_str());
    // A hint carries the nearer ones before it, and each of them stands in the chain too.
    let is_hint = |part: &str| {
        hint.is_some_and(|hint| {
            hint.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('\n'))
        })
    };
    let causes = error.chain().map(ToString::to_string);
    (causes.filter(|part| code.as_ref() != Some(part) && !is_hint(part)).collect(), hint)
}

#[derive(Clone)]
pub struct Ui {
    /// Standard error is a terminal: a step may redraw its line.
    live: Option<Arc<Screen>>,
    /// Colour, unless NO_COLOR is set or standard error is no terminal.
    colour: bool,
    /// Only results: for `--json`.
    quiet: bool,
}

impl Ui {
    pub fn new(quiet: bool) -> Self {
        let tty = std::io::stderr().is_terminal();
        let set = |name| System::environment(name).is_some_and(|v| !v.is_empty());
        let dumb = System::environment("TERM").is_some_and(|t| t == "dumb");
        let live = (tty && !dumb && !quiet).then(Arc::default);
        Self { live, colour: tty && !dumb && !set("NO_COLOR"), quiet }
    }

    /// A result, on standard output.
    pub fn out(&self, text: impl fmt::Display) {
        // A reader that has gone away (`| head`) is not our failure.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// Whether a line is drawn anew while something is being done. Results then have to come in whole lines.
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// A piece of a result, which brings its own line ends.
    pub fn raw(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        let _screen = self.live.as_ref().map(|screen| screen.cleared());
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Something said on the way.
    pub fn say(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.print(text);
        }
    }

    pub fn warn(&self, text: impl fmt::Display) {
        let mark = self.paint("33", "warning:");
        self.print(format_args!("{mark} {text}"));
    }

    /// An error of one thing where the others go on: all of it in a line, and below that what to try.
    pub fn warn_of(&self, error: &Error) {
        let (chain, hint) = told(error);
        self.warn(chain.join(": "));
        for line in hint.unwrap_or_default().lines() {
            self.print(format_args!("  {} {line}", self.paint("36", "try:")));
        }
    }

    /// Whole lines, above the live one.
    fn print(&self, text: impl fmt::Display) {
        let _screen = self.live.as_ref().map(|screen| screen.cleared());
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// The whole error: what we were doing first, the reason last, then what to try.
    pub fn error(&self, error: &Error) {
        let (chain, hint) = told(error);
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "{} {}", self.paint("31", "error:"), chain.join("\n  because: "));
        let mut label = self.paint("36", "try:");
        for line in hint.unwrap_or_default().lines() {
            let _ = writeln!(err, "{label}   {line}");
            label = "    ".into();
        }
    }

    /// Begin a step that may take long.
    pub fn step(&self, what: impl fmt::Display) -> Step {
        self.step_begun(what, Duration::ZERO)
    }

    /// As `step`, for one that began so long ago.
    pub fn step_begun(&self, what: impl fmt::Display, ago: Duration) -> Step {
        let detail = Mutex::new(String::new());
        let since = Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
        let doing = Arc::new(Doing { what: what.to_string(), detail, since });
        let drawing = self.live.as_ref().map(|screen| {
            screen.cleared().push(Arc::clone(&doing));
            let (stop, stopped) = mpsc::channel::<()>();
            let (screen, doing, mark) = (Arc::clone(screen), Arc::clone(&doing), self.paint("36", "·"));
            let draw = move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) =
                    stopped.recv_timeout(Duration::from_millis(100))
                {
                    screen.draw(&doing, &mark);
                }
                screen.cleared().retain(|other| !Arc::ptr_eq(other, &doing));
            };
            (stop, std::thread::spawn(draw))
        });
        Step { doing, drawing, ui: self.clone() }
    }

    pub fn good(&self) -> String {
        self.paint("32", "✓")
    }

    pub fn bad(&self) -> String {
        self.paint("31", "✗")
    }

    pub fn warned(&self) -> String {
        self.paint("33", "!")
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// The last line of the terminal, and what is being done, the longest first. Who holds the list may write.
#[derive(Default)]
struct Screen(Mutex<Vec<Arc<Doing>>>);

struct Doing {
    what: String,
    /// What it is busy with just now.
    detail: Mutex<String>,
    since: Instant,
}

impl Screen {
    /// The live line is gone until the next drawing.
    fn cleared(&self) -> MutexGuard<'_, Vec<Arc<Doing>>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write!(std::io::stderr().lock(), "\r\x1b[2K");
        all
    }

    /// If it is the one to be shown.
    fn draw(&self, doing: &Arc<Doing>, mark: &str) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.first().is_some_and(|first| Arc::ptr_eq(first, doing)) {
            return;
        }
        let detail = doing.detail.lock().map(|detail| detail.clone()).unwrap_or_default();
        let others = if all.len() > 1 { format!(" (and {} more)", all.len() - 1) } else { String::new() };
        let took = doing.since.elapsed().as_secs_f32();
        let line = format!("{}  {took:.1} s{others}  {detail}", doing.what);
        let short: String = line.chars().take(100).collect();
        let _ = write!(std::io::stderr().lock(), "\r\x1b[2K{mark} {short}");
    }
}

/// One thing being done. Dropped without `done`, it failed: its line goes, and the error speaks.
pub struct Step {
    doing: Arc<Doing>,
    /// Dropping the sender ends the thread.
    drawing: Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>,
    ui: Ui,
}

impl Step {
    /// What it is busy with just now.
    pub fn detail(&self, text: &str) {
        if let Ok(mut detail) = self.doing.detail.lock() {
            text.clone_into(&mut detail);
        }
    }

    /// As `detail`, for what somebody who reads plain lines must know as well: why it takes so long. Said once.
    pub fn tell(&self, text: &str) {
        let told = self.doing.detail.lock().is_ok_and(|detail| *detail == text);
        if self.ui.live.is_none() && !told {
            self.ui.say(format_args!("{}: {text}", self.doing.what));
        }
        self.detail(text);
    }

    pub fn done(mut self) {
        self.clear();
        let took = self.doing.since.elapsed();
        let took = if took > Duration::from_millis(200) {
            format!("  {:.1} s", took.as_secs_f32())
        } else {
            String::new()
        };
        self.ui.say(format_args!("{} {}{took}", self.ui.good(), self.doing.what));
        remember(&self.doing.what);
    }

    fn clear(&mut self) {
        if let Some((stop, drawing)) = self.drawing.take() {
            drop(stop);
            let _ = drawing.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Leave a structured entry in the system's journal, where there is one.
fn remember(what: &str) {
    // What a unit says on standard error is in the journal already.
    if !libsystemd::logging::connected_to_journal() {
        let vars: HashMap<&str, &str> =
            HashMap::from([("SYSLOG_IDENTIFIER", "echoes-appliance"), ("ECHOES_STEP", what)]);
        // A full or absent journal is no reason to stop an installation.
        let _ =
            libsystemd::logging::journal_send(libsystemd::logging::Priority::Info, what, vars.into_iter());
    }
}

/// A moment, for people: to the minute, in the one time zone that all machines share.
pub fn moment(at: time::OffsetDateTime) -> String {
    let form = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    // One of the year 9999 may be none any more in another zone.
    let utc = at.checked_to_offset(time::UtcOffset::UTC).and_then(|at| at.format(form).ok());
    utc.unwrap_or_else(|| at.to_string())
}

/// So many seconds, for people: in the two largest units that say something.
pub fn lasting(seconds: u64) -> String {
    let units = [(seconds / 3600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let said = units.iter().skip_while(|(n, _)| *n == 0).take(2).filter(|(n, _)| *n > 0);
    let said: Vec<_> = said.map(|(n, unit)| format!("{n} {unit}")).collect();
    if said.is_empty() { "0 s".into() } else { said.join(" ") }
}

/// The widest column that others are lined up by: a name may be as long as somebody made it, and then sticks out.
const WIDEST: usize = 100;

/// Rows in columns as wide as their widest cell; the last column is left as long as it is.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |cell: &String| cell.chars().count();
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(length).filter(|n| *n <= WIDEST).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(c, cell)| {
            // Not by a width in the format: that has 16 bits, and a longer one ends the program.
            let missing = if c + 1 == row.len() { 0 } else { widths[c].saturating_sub(length(cell)) };
            format!("{cell}{}", " ".repeat(missing))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_all_dates_is_a_moment_too() {
        let last = time::macros::datetime!(9999-12-31 23:59:59 -23:59);
        assert_eq!(moment(last), last.to_string());
        assert_eq!(moment(time::macros::datetime!(2026-11-29 01:02:03 +1)), "2026-11-29 00:02 UTC");
    }

    #[test]
    fn a_while_is_told_as_people_tell_it() {
        for (seconds, said) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (135, "2 min 15 s"),
            (600, "10 min"),
            (3600, "1 h"),
            (3605, "1 h"),
            (5400, "1 h 30 min"),
            (86_400, "24 h"),
        ] {
            assert_eq!(lasting(seconds), said);
        }
    }

    #[test]
    fn the_nearest_hint_comes_first_and_none_is_lost() {
        let error = || -> anyhow::Result<()> { anyhow::bail!("disk full") };
        let error = error().or_try("make room").or_try("run this again").unwrap_err();
        assert_eq!(told(&error), (vec!["disk full".into()], Some("make room\nrun this again")));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bbb".into(), "c".into()], vec!["aa".into(), "b".into(), "cc".into()]];
        assert_eq!(table(&rows), "a   bbb  c\naa  b    cc");
    }

    #[test]
    fn one_cell_of_any_length_makes_neither_an_end_nor_a_table_of_its_width() {
        let long = "é".repeat(70_000);
        let rows = [vec![long.clone(), "x".into()], vec!["a".into(), "b".into()]];
        assert_eq!(table(&rows), format!("{long}  x\na  b"));
        assert_eq!(table(&[vec![], vec![String::new(), String::new()]]), "\n");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn no_format_takes_a_width_or_a_precision_from_data() {
        fn check(dir: &std::path::Path) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    check(&path);
                    continue;
                }
                for (n, line) in std::fs::read_to_string(&path).unwrap().lines().enumerate() {
                    // A name with a dollar, or a star: both panic above 65,535.
                    let holes =
                        line.split('{').skip(1).filter_map(|rest| rest.split_once('}')?.0.split_once(':'));
                    let bad =
                        holes.map(|(_, form)| form).find(|form| form.ends_with('$') || form.ends_with(".*"));
                    assert!(bad.is_none(), "{}:{}: {line}", path.display(), n + 1);
                }
            }
        }
        check(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    }
}
