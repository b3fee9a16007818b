//! What a script has written, made fit for a person's terminal: nothing in it moves a cursor, sets a title or answers
//! for the person. It comes from a machine that we do not trust. Pure.

/// Bytes in, harmless text out; a character that is cut in two waits for its other half.
#[derive(Default)]
pub struct Harmless {
    rest: Vec<u8>,
    /// The last character was a carriage return: a progress bar's, or half of a line's end.
    returned: bool,
}

impl Harmless {
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.rest.extend(bytes);
        let whole = whole(&self.rest);
        let text = String::from_utf8_lossy(&self.rest[..whole]).into_owned();
        self.rest.drain(..whole);
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '\n' if self.returned => {}
                '\n' | '\t' => out.push(c),
                // A bar that draws itself anew becomes lines.
                '\r' => out.push('\n'),
                '\0'..='\x1f' => out.extend(['^', char::from(c as u8 + b'@')]),
                c if c.is_control() || turns(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
            self.returned = c == '\r';
        }
        out
    }
}

/// Characters that reverse what is read after them.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// How many of the bytes are whole characters, or can never be.
fn whole(bytes: &[u8]) -> usize {
    let from = bytes.len().saturating_sub(3);
    let begun = (from..bytes.len()).rev().find(|at| bytes[*at] & 0xc0 != 0x80);
    match begun {
        Some(at) if std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none()) => at,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_log_moves_a_cursor_however_it_is_cut() {
        let log = "ä\u{1b}[2J\u{1b}]0;x\u{7}\r\n5%\r10%\r\nüß €\u{202e}\u{9b}31m\tend\n".as_bytes();
        let expected = "ä^[[2J^[]0;x^G\n5%\n10%\nüß €\\u{202e}\\u{9b}31m\tend\n";
        for cut in 0..=log.len() {
            let mut harmless = Harmless::default();
            let shown = harmless.push(&log[..cut]) + &harmless.push(&log[cut..]);
            assert_eq!(shown, expected, "cut at {cut}");
        }
        let mut harmless = Harmless::default();
        let bytewise: String = log.iter().map(|byte| harmless.push(&[*byte])).collect();
        assert_eq!(bytewise, expected);
        assert_eq!(Harmless::default().push(b"\xff\xfe\x80 x"), "\u{fffd}\u{fffd}\u{fffd} x");
    }

    #[test]
    fn fuzz_log_is_harmless_however_it_is_cut() {
        crate::fuzz::run("log", &["\u{1b}[2J", "\r", "\u{9b}"], |bytes| {
            let mut whole = Harmless::default();
            let mut cut = Harmless::default();
            let all = whole.push(bytes);
            let parts: String = bytes.chunks(1 + bytes.len() % 7).map(|part| cut.push(part)).collect();
            assert_eq!(parts, all);
            let bad = all.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t' || turns(*c));
            assert_eq!(bad, None);
            let shown = crate::gpu::wire::shown(&String::from_utf8_lossy(bytes));
            assert!(shown.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            Ok(())
        });
    }
}
