//! What goes over the wire between the headquarters and its agent on a machine: a first line that says who speaks,
//! then frames, each a kind, a length and as many bytes. A word is one JSON value; a stream is any number of bytes in
//! frames, until its end or until whoever sends it breaks off and says why. Everything is bounded by who hears it: the
//! other side is somebody else's machine.

use super::job::Nonsense;
use crate::host::process::{Ear, Mouth};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use flate2::read::DeflateDecoder;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, BufRead as _, BufReader, BufWriter, ErrorKind, Read, Write};

/// Another version means that one of us would misunderstand the other. Both are the same program, sent by its hash, so
/// this is seen only where somebody else answers.
const HELLO: &[u8] = b"echoes-agent 1\n";
/// A login shell may greet first. More than that is no greeting.
const CHATTER: usize = 16 << 10;
const WORD: usize = 1 << 20;
const BYTES: usize = 128 << 10;
/// Why a stream broke off.
const REASON: usize = 4 << 10;

/// The longest thing that is sent as one stream of JSON and held in memory as a whole: a list of files.
pub const LIST: u64 = 256 << 20;

pub struct Wire {
    from: BufReader<Ear>,
    to: BufWriter<Mouth>,
}

enum Frame {
    Word(Vec<u8>),
    Bytes(Vec<u8>),
    End,
    /// The other side cannot go on.
    Broken(String),
}

/// The other side has ended the conversation, between two frames.
#[derive(Debug)]
pub struct Over;

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection ended")
    }
}

impl std::error::Error for Over {}

impl Wire {
    /// For the agent: say who we are.
    pub fn answering(from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> Result<Self> {
        let mut wire = Self::over(Box::new(from), Box::new(to));
        wire.to.write_all(HELLO)?;
        wire.to.flush()?;
        Ok(wire)
    }

    /// For the headquarters: hear who that is.
    pub fn asking(from: Ear, to: Mouth) -> Result<Self> {
        let mut wire = Self::over(from, to);
        let mut heard = Vec::new();
        while !heard.ends_with(HELLO) {
            let mut byte = [0];
            let endless = heard.len() >= CHATTER;
            if endless || wire.from.read(&mut byte).context("waiting for the agent")? == 0 {
                let said = cut(&String::from_utf8_lossy(&heard));
                let said = format!("it answered {}", if said.is_empty() { "nothing" } else { &said });
                let error = if endless { Nonsense(said).into() } else { anyhow!(said) };
                return Err(error.context("waiting for the agent"));
            }
            heard.extend(byte);
        }
        Ok(wire)
    }

    fn over(from: Ear, to: Mouth) -> Self {
        Self { from: BufReader::with_capacity(BYTES, from), to: BufWriter::with_capacity(BYTES, to) }
    }

    fn put(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.to.write_all(&[kind])?;
        self.to.write_all(&length.to_be_bytes())?;
        self.to.write_all(bytes)
    }

    fn get(&mut self) -> io::Result<Frame> {
        // Whoever waits for an answer has said all that it is an answer to.
        if self.from.buffer().is_empty() {
            self.to.flush()?;
        }
        let mut kind = [0];
        if self.from.read(&mut kind)? == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, Over));
        }
        let mut length = [0; 4];
        self.from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        let most = match kind[0] {
            b'w' => WORD,
            b'b' => BYTES,
            b'e' => 0,
            b'x' => REASON,
            other => return Err(wrong(format!("a frame of kind {other}"))),
        };
        if length > most {
            return Err(wrong(format!("a frame of {length} bytes where {most} are the most")));
        }
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        Ok(match kind[0] {
            b'w' => Frame::Word(bytes),
            b'b' => Frame::Bytes(bytes),
            b'e' => Frame::End,
            _ => Frame::Broken(shown(&String::from_utf8_lossy(&bytes))),
        })
    }

    /// Say one thing. It is under way when this returns.
    pub fn tell(&mut self, word: &impl Serialize) -> Result<()> {
        self.queue(word)?;
        self.flush()
    }

    /// Say one thing, together with what comes next: it is under way when we wait for an answer, or with `flush`. How many
    /// bytes it has.
    pub fn queue(&mut self, word: &impl Serialize) -> Result<usize> {
        let word = serde_json::to_vec(word)?;
        ensure!(word.len() <= WORD, "a word of {} bytes is too long to be told", word.len());
        self.put(b'w', &word).map_err(|e| self.instead(e))?;
        Ok(word.len())
    }

    pub fn flush(&mut self) -> Result<()> {
        self.to.flush().map_err(|e| self.instead(e))
    }

    /// Hear one thing, of the kind that is expected now.
    pub fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        match self.get()? {
            Frame::Word(word) => parsed(&word).context("hearing a word that was not expected"),
            Frame::Broken(why) => Err(anyhow!(why)),
            Frame::Bytes(_) | Frame::End => bail!(Nonsense("bytes came where a word was expected".into())),
        }
    }

    /// As `hear`; none when the other side has ended the conversation.
    pub fn hear_if_any<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        match self.hear() {
            Err(e) if is_over(&e) => Ok(None),
            heard => heard.map(Some),
        }
    }

    /// We cannot go on, and why.
    pub fn break_off(&mut self, why: &anyhow::Error) {
        let why = format!("{why:#}");
        let why = (0..=REASON.min(why.len())).rev().find_map(|end| why.get(..end)).unwrap_or_default();
        // Who cannot be told finds the connection ended.
        let _ = self.put(b'x', why.as_bytes()).and_then(|()| self.to.flush());
    }

    /// A stream of bytes to the other side. It ends with `Sending::end`.
    pub fn sending(&mut self) -> Sending<'_> {
        // Most files are small, and grow into what they need.
        Sending { wire: self, bytes: Vec::new() }
    }

    /// The stream of bytes that comes now.
    pub fn receiving(&mut self) -> Receiving<'_> {
        Receiving { wire: self, bytes: Vec::new(), at: 0, ended: false }
    }

    /// As `tell`, for what may be long.
    pub fn pour(&mut self, word: &impl Serialize) -> Result<()> {
        let mut sending = self.sending();
        let mut small = flate2::write::DeflateEncoder::new(&mut sending, flate2::Compression::fast());
        serde_json::to_writer(&mut small, word)?;
        small.finish()?;
        sending.end()
    }

    /// As `hear`, for what was poured, and has no more bytes than `most` when it is unpacked.
    pub fn draw<T: DeserializeOwned>(&mut self, most: u64) -> Result<T> {
        let mut receiving = self.receiving();
        let mut bytes = Vec::new();
        let unpacked = DeflateDecoder::new(&mut receiving).take(most + 1).read_to_end(&mut bytes);
        unpacked.map_err(|e| if e.kind() == ErrorKind::InvalidInput { wrong(e.to_string()) } else { e })?;
        ensure!(bytes.len() as u64 <= most, Nonsense(format!("a list of more than {most} bytes")));
        receiving.rest()?;
        parsed(&bytes).context("reading a list")
    }

    /// As `pour`, for what is too much to be held in memory: one after another, while `next` has one.
    pub fn pour_each<T: Serialize>(
        &mut self,
        next: impl FnOnce(&mut dyn FnMut(&T) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let mut sending = self.sending();
        let mut small = flate2::write::DeflateEncoder::new(&mut sending, flate2::Compression::fast());
        let poured = next(&mut |one| {
            serde_json::to_writer(&mut small, one)?;
            Ok(small.write_all(b"\n")?)
        });
        match poured.and_then(|()| Ok(small.finish().map(drop)?)) {
            Ok(()) => sending.end(),
            Err(error) => {
                sending.break_off(&error);
                Err(error)
            }
        }
    }

    /// What was poured by `pour_each`, one after another: none has more bytes than a word, and all of it not more than `most`
    /// when it is unpacked.
    pub fn draw_each<T: DeserializeOwned>(
        &mut self,
        most: u64,
        each: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut receiving = self.receiving();
        let mut lines = BufReader::with_capacity(BYTES, DeflateDecoder::new(&mut receiving));
        let (mut line, mut all) = (Vec::new(), 0);
        loop {
            line.clear();
            let read = (&mut lines).take(WORD as u64 + 1).read_until(b'\n', &mut line);
            let read =
                read.map_err(|e| if e.kind() == ErrorKind::InvalidInput { wrong(e.to_string()) } else { e })?;
            if read == 0 {
                break;
            }
            all += read as u64;
            ensure!(read <= WORD, Nonsense(format!("a list with an entry of more than {WORD} bytes")));
            ensure!(all <= most, Nonsense(format!("a list of more than {most} bytes")));
            each(parsed(&line).context("reading a list")?)?;
        }
        drop(lines);
        receiving.rest()
    }

    /// A broken pipe says nothing; the reason may still be on its way to us.
    fn instead(&mut self, e: io::Error) -> anyhow::Error {
        if e.kind() == ErrorKind::BrokenPipe
            && let Ok(Frame::Broken(why)) = self.get()
        {
            return anyhow!(why);
        }
        e.into()
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, Nonsense(what))
}

/// What is wrong with it is told in words that may be the other side's own.
fn parsed<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    Ok(serde_json::from_slice(json).map_err(|e| Nonsense(cut(&e.to_string())))?)
}

/// The beginning of what somebody says, made harmless.
fn cut(said: &str) -> String {
    shown(&said.chars().take(200).collect::<String>())
}

/// Whether the other side has gone, rather than complained.
pub fn is_over(error: &anyhow::Error) -> bool {
    let over = |e: &io::Error| e.get_ref().is_some_and(|inner| inner.is::<Over>());
    error.downcast_ref::<io::Error>().is_some_and(over)
}

/// Whether the connection is to blame: it ended, or broke in the middle of something.
pub fn is_lost(error: &anyhow::Error) -> bool {
    let lost = |e: &io::Error| matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe);
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(lost))
}

/// As it can be written to a terminal: what would move its cursor, colour it or answer for its keyboard is shown in
/// place of being done. For whatever a machine says.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            // Right-to-left marks and their kin reorder what is around them.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

pub struct Sending<'a> {
    wire: &'a mut Wire,
    bytes: Vec<u8>,
}

impl<'a> Sending<'a> {
    pub fn end(self) -> Result<()> {
        self.queue_end()?.flush()
    }

    /// As `end`, under way as `Wire::queue` is.
    pub fn queue_end(mut self) -> Result<&'a mut Wire> {
        let ended = self.push().and_then(|()| self.wire.put(b'e', b""));
        ended.map_err(|e| self.wire.instead(e))?;
        Ok(self.wire)
    }

    /// What was sent is not what it should have been.
    pub fn break_off(self, why: &anyhow::Error) {
        self.wire.break_off(why);
    }

    fn push(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.wire.put(b'b', &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BYTES - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        if self.bytes.len() == BYTES {
            self.push().map_err(|e| io::Error::other(self.wire.instead(e)))?;
        }
        Ok(taken)
    }

    /// Frames are as full as they can be: what is left goes with `end`.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct Receiving<'a> {
    wire: &'a mut Wire,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Receiving<'_> {
    /// To the end of the stream, where nothing but its end may be.
    pub fn rest(mut self) -> Result<()> {
        let more = self.read(&mut [0])? != 0;
        ensure!(!more, Nonsense("more bytes came than were announced".into()));
        Ok(())
    }
}

impl Read for Receiving<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.bytes.len() && !self.ended {
            match self.wire.get()? {
                Frame::Bytes(bytes) => (self.bytes, self.at) = (bytes, 0),
                Frame::End => self.ended = true,
                Frame::Broken(why) => return Err(io::Error::other(why)),
                Frame::Word(_) => return Err(wrong("a word came in the middle of a stream".into())),
            }
        }
        let n = out.len().min(self.bytes.len() - self.at);
        out[..n].copy_from_slice(&self.bytes[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::gpu::{job::is_nonsense, tree::Have};

    /// Two ends of one connection.
    pub fn pair() -> (Wire, Wire) {
        let (from_agent, to_hq) = io::pipe().unwrap();
        let (from_hq, to_agent) = io::pipe().unwrap();
        let agent = Wire::answering(from_hq, to_hq).unwrap();
        (Wire::asking(Box::new(from_agent), Box::new(to_agent)).unwrap(), agent)
    }

    /// What headquarters makes of somebody who answers with these bytes.
    fn hearing(bytes: &[u8]) -> Wire {
        let all = [HELLO, bytes].concat();
        Wire::asking(Box::new(io::Cursor::new(all)), Box::new(io::sink())).unwrap()
    }

    #[test]
    fn words_and_streams_arrive_as_they_were() {
        let (mut hq, mut agent) = pair();
        let long: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let sent = long.clone();
        let answering = std::thread::spawn(move || {
            assert_eq!(agent.hear::<String>().unwrap(), "ask");
            let mut sending = agent.sending();
            sending.write_all(&sent).unwrap();
            sending.end().unwrap();
            agent.pour(&vec!["a"; 100_000]).unwrap();
            assert_eq!(agent.hear_if_any::<String>().unwrap(), None);
        });
        hq.tell(&"ask").unwrap();
        let mut got = Vec::new();
        let mut receiving = hq.receiving();
        receiving.read_to_end(&mut got).unwrap();
        receiving.rest().unwrap();
        assert!(got == long);
        assert_eq!(hq.draw::<Vec<String>>(LIST).unwrap().len(), 100_000);
        drop(hq);
        answering.join().unwrap();
    }

    #[test]
    fn a_shell_that_greets_first_is_heard_out_and_one_that_only_talks_is_quoted() {
        let greeting = [b"Last login: yesterday\n", HELLO].concat();
        assert!(Wire::asking(Box::new(io::Cursor::new(greeting)), Box::new(io::sink())).is_ok());
        let said = |bytes: &'static [u8]| {
            let wire = Wire::asking(Box::new(io::Cursor::new(bytes)), Box::new(io::sink()));
            format!("{:#}", wire.err().unwrap())
        };
        assert!(said(b"no such \x1b[2Jfile").contains(r"it answered no such \u{1b}[2Jfile"));
        assert!(said(b"").contains("it answered nothing"));
        let endless = Wire::asking(Box::new(io::repeat(b'a')), Box::new(io::sink()));
        assert!(endless.is_err());
    }

    #[test]
    fn whoever_lies_about_lengths_is_not_believed() {
        let frame =
            |kind: u8, length: u32, bytes: &[u8]| [&[kind][..], &length.to_be_bytes(), bytes].concat();
        let heard = |bytes: Vec<u8>| format!("{:#}", hearing(&bytes).hear::<String>().unwrap_err());
        assert!(heard(frame(b'w', u32::MAX, b"")).contains("are the most"));
        assert!(heard(frame(b'b', 200 << 10, b"")).contains("are the most"));
        assert!(heard(frame(b'q', 0, b"")).contains("a frame of kind 113"));
        assert!(heard(frame(b'w', 9, b"\"a\"")).contains("fill whole buffer"));
        assert!(heard(frame(b'w', 1, b"1")).contains("not expected"));
        assert!(heard(frame(b'e', 0, b"")).contains("bytes came"));
        let words = format!(r#"{{"\u001b[2J{}":1}}"#, "x".repeat(9000));
        let error = hearing(&frame(b'w', words.len() as u32, words.as_bytes())).hear::<Have>().unwrap_err();
        let said = format!("{error:#}");
        assert!(said.len() < 300 && said.contains(r"\u{1b}[2Jxx"), "{said}");
        assert!(is_nonsense(&error), "{said}");
        assert_eq!(heard(frame(b'x', 6, b"a\x1b[31m")), r"a\u{1b}[31m");
    }

    #[test]
    fn a_small_parcel_that_unpacks_without_end_is_left() {
        let (mut hq, mut agent) = pair();
        let sending = std::thread::spawn(move || {
            let mut sending = agent.sending();
            let mut small = flate2::write::DeflateEncoder::new(&mut sending, flate2::Compression::best());
            // A third of a gigabyte of nothing, in 300 kB.
            let _ = io::copy(&mut io::repeat(b' ').take(LIST + (64 << 20)), &mut small);
            let _ = small.finish().map(drop);
            let _ = sending.end();
        });
        let error = hq.draw::<Vec<u8>>(LIST).unwrap_err();
        assert!(is_nonsense(&error), "{error:#}");
        assert!(error.to_string().contains("a list of more than"), "{error:#}");
        drop(hq);
        sending.join().unwrap();
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_left_in_what_is_shown() {
        assert_eq!(shown("a\tb\nc"), "a\tb\nc");
        assert_eq!(shown("\x1b]0;title\x07\r\u{9b}31m"), r"\u{1b}]0;title\u{7}\r\u{9b}31m");
        assert_eq!(shown("\u{202e}txt.exe"), r"\u{202e}txt.exe");
        let every: String = (0..0x300).filter_map(char::from_u32).collect();
        assert!(shown(&every).chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
    }

    /// What somebody says who pours these lines.
    pub fn poured(lines: &[u8]) -> Wire {
        let mut small = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        small.write_all(lines).unwrap();
        let small = small.finish().unwrap();
        let frame =
            |kind: u8, bytes: &[u8]| [&[kind][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat();
        let frames: Vec<u8> = small.chunks(BYTES).flat_map(|bytes| frame(b'b', bytes)).collect();
        hearing(&[frames, frame(b'e', b"")].concat())
    }

    #[test]
    fn fuzz_wire_ends_in_what_was_said_or_in_an_error() {
        use crate::gpu::agent::site::{Ask, Look, Page};
        let words =
            ["w\0\0\0\u{4}", "b\0\0\0\u{1}", "e\0\0\0\0", "x\0\0\0\u{2}", "w\u{7f}\u{7f}\u{7f}\u{7f}"];
        crate::fuzz::run("wire", &words, |bytes| {
            // From whoever greets, too.
            let greeted = Wire::asking(Box::new(io::Cursor::new(bytes.to_vec())), Box::new(io::sink()));
            drop(greeted.map(|mut wire| wire.hear::<Ask>()));
            let mut first = Ok(());
            for n in 0..5 {
                let mut wire = hearing(bytes);
                let heard = loop {
                    let one = match n {
                        0 => wire.hear_if_any::<serde_json::Value>().map(|word| word.is_some()),
                        1 => wire.hear::<Ask>().map(drop).and_then(|()| wire.hear::<Page>()).map(|_| true),
                        2 => wire.hear::<Look>().map(|_| true),
                        3 => wire.draw::<Vec<Have>>(1 << 20).map(|_| true),
                        _ => wire.draw_each::<serde_json::Value>(1 << 20, &mut |_| Ok(())).map(|()| true),
                    };
                    match one {
                        Ok(true) => {}
                        Ok(false) => break Ok(()),
                        Err(error) => break Err(error),
                    }
                };
                first = first.and(heard);
            }
            first
        });
    }
}
