//! The password file, as a value: what its lines say, who opens what, and what it becomes when a user is
//! added or removed. Pure: reading and writing the file is its caller's.
//!
//! New passwords are hashed with bcrypt. Lines that somebody else wrote, comments and other hashes included,
//! are kept byte for byte; hashes that we cannot check are listed with their kind and open nothing here.

use anyhow::{Result, bail, ensure};
use bcrypt::HashParts;
use std::{collections::HashSet, fmt, str::FromStr};

/// About 0.2 s on a small machine: slow for a guesser with a stolen file, and paid once per login here,
/// since right answers are remembered (see `web::gate`).
const COST: u32 = 12;

/// Above this, one login would hold a processor for more than two seconds.
const MAX_COST: u32 = 15;

/// What begins the name of a run's login, and of no person's.
pub const RUN_PREFIX: &str = "run-";

/// The remark in the line of a run's login, by which it is told from that of a person who was called so before.
const RUN_REMARK: &str = "a run's, of echoes-appliance";

/// A user's name. It cannot hold what would end its field or line, nor anything but ASCII: browsers send
/// other letters as UTF-8, Python clients as Latin-1, and only one of them would be let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct User(String);

impl FromStr for User {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        ensure!(!name.is_empty(), "a user name cannot be empty");
        ensure!(name.len() <= 64, "a user name has at most 64 characters");
        ensure!(!name.contains(':'), "a user name cannot contain `:`, which ends it in the password file");
        ensure!(!name.starts_with('#'), "a user name cannot start with `#`, which makes its line a comment");
        ensure!(
            name.bytes().all(|b| b.is_ascii_graphic() || b == b' ') && name.trim() == name,
            "a user name is made of ASCII letters, digits and signs, with no space at either end"
        );
        Ok(Self(name.to_owned()))
    }
}

impl User {
    /// Refuses a name that would be taken for a run's.
    pub fn ensure_person(&self) -> Result<()> {
        ensure!(
            !self.0.starts_with(RUN_PREFIX),
            "names that begin with `{RUN_PREFIX}` are those of runs, which may do their own run's work at MLflow and nothing \
             else: {self} would be taken for one"
        );
        Ok(())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for User {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A password fit to be set. It is never shown by accident: it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl FromStr for Password {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(
            text.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
            "a password is made of ASCII letters, digits, signs and spaces: browsers and Python clients send \
             other letters differently, and one of them would be refused"
        );
        match text.len() {
            0..8 => bail!("a password has at least 8 characters"),
            8..=72 => Ok(Self(text.to_owned())),
            long => bail!(
                "a password has at most 72 characters, this one has {long}: bcrypt does not see what follows"
            ),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// The password itself, to be shown once or handed to a client.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A random password of 118 bits, made to be read aloud and typed: four groups of six small letters and
    /// digits, without those that are taken for one another.
    pub fn generate() -> Result<Self> {
        const LETTERS: &[u8; 31] = b"abcdefghjkmnpqrstuvwxyz23456789";
        let mut text = String::new();
        let mut bytes = [0; 64];
        while text.len() < 27 {
            getrandom::fill(&mut bytes)?;
            // Five bits make 32 letters and we have 31: the last is drawn again, so that all are as likely.
            for letter in bytes.iter().filter_map(|b| LETTERS.get(usize::from(b & 31))) {
                if text.len() == 27 {
                    break;
                }
                if text.len() % 7 == 6 {
                    text.push('-');
                }
                text.push(char::from(*letter));
            }
        }
        Ok(Self(text))
    }
}

/// How a line keeps its password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bcrypt { cost: u32 },
    Apr1,
    Sha1,
    SaltedSha1,
    Plain,
    Crypt,
}

impl Kind {
    fn of(hash: &str) -> Self {
        match hash {
            _ if let Some(cost) = bcrypt_cost(hash) => Self::Bcrypt { cost },
            _ if hash.starts_with("$apr1$") => Self::Apr1,
            _ if hash.starts_with("{SHA}") => Self::Sha1,
            _ if hash.starts_with("{SSHA}") => Self::SaltedSha1,
            _ if hash.starts_with("{PLAIN}") => Self::Plain,
            _ => Self::Crypt,
        }
    }

    /// Whether `verify` can tell right from wrong for such a line.
    pub fn is_checkable(self) -> bool {
        matches!(self, Self::Bcrypt { cost } if cost <= MAX_COST)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bcrypt { cost } => write!(f, "bcrypt, cost {cost}"),
            Self::Apr1 => f.write_str("apr1 (MD5)"),
            Self::Sha1 => f.write_str("SHA-1"),
            Self::SaltedSha1 => f.write_str("salted SHA-1"),
            Self::Plain => f.write_str("plain text"),
            Self::Crypt => f.write_str("crypt"),
        }
    }
}

fn bcrypt_cost(hash: &str) -> Option<u32> {
    // $2x$ is a hash made by a broken implementation: no password is right for it.
    let good = ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| hash.starts_with(prefix));
    good.then(|| hash.parse::<HashParts>().ok()).flatten().map(|parts| parts.get_cost())
}

/// A user as the file has it. The name is the file's, which may not be one that we would accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub user: String,
    pub kind: Kind,
}

/// What a password is tried on. Trying takes as long for a user that does not exist as for one that does.
#[derive(Clone, PartialEq, Eq)]
pub struct Lock {
    hash: String,
    real: bool,
}

impl Lock {
    /// Whether this password is the right one. Takes as long as its hash was made to take: never on a thread
    /// that others wait for.
    pub fn opens(&self, password: &[u8]) -> bool {
        let matches = bcrypt::verify(password, &self.hash).unwrap_or(false);
        matches && self.real
    }

    /// The stored hash, to tell this lock from another.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Right,
    Wrong,
    NoSuchUser,
    /// The line is of a kind that we cannot check.
    Unchecked(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    New,
    Changed,
}

/// The whole file.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Htpasswd {
    lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Eq)]
struct Line {
    /// As it stands in the file, without its newline.
    raw: Vec<u8>,
    login: Option<Login>,
}

#[derive(Clone, PartialEq, Eq)]
struct Login {
    user: String,
    hash: String,
    kind: Kind,
    /// The line has our remark.
    is_run: bool,
}

impl Line {
    /// Read as nginx reads it: `user:hash`, where a second colon or a carriage return begins a remark.
    fn parse(raw: &[u8]) -> Self {
        let login = || {
            let text = str::from_utf8(raw).ok().filter(|text| !text.starts_with('#'))?;
            let (user, rest) = text.split_once(':')?;
            let (hash, remark) = rest.split_once([':', '\r']).unwrap_or((rest, ""));
            let (user, hash, kind) = (user.to_owned(), hash.to_owned(), Kind::of(hash));
            (!user.is_empty()).then_some(Login { user, hash, kind, is_run: remark == RUN_REMARK })
        };
        Self { raw: raw.to_vec(), login: login() }
    }

    fn is_of(&self, user: &str) -> bool {
        self.login.as_ref().is_some_and(|login| login.user == user)
    }
}

impl Htpasswd {
    pub fn parse(bytes: &[u8]) -> Self {
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        if bytes.is_empty() {
            return Self::default();
        }
        Self { lines: bytes.split(|b| *b == b'\n').map(Line::parse).collect() }
    }

    /// The file's contents; what was not changed is as it was read.
    pub fn format(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| [&line.raw[..], b"\n"].concat()).collect()
    }

    /// Everybody in the file, in its order. Of two lines for one user only the first counts, as with nginx.
    pub fn list(&self) -> Vec<Entry> {
        let mut known = HashSet::new();
        let logins = self.lines.iter().filter_map(|line| line.login.as_ref());
        let first = logins.filter(|login| known.insert(&login.user));
        first.map(|Login { user, kind, .. }| Entry { user: user.clone(), kind: *kind }).collect()
    }

    /// Set the user's password. Every older line of that user is gone.
    pub fn add(&mut self, user: &User, password: &Password) -> Result<Added> {
        self.add_at_cost(user, password, COST)
    }

    fn add_at_cost(&mut self, user: &User, password: &Password, cost: u32) -> Result<Added> {
        let line = Line::parse(format!("{user}:{}", new_hash(password, cost)?).as_bytes());
        Ok(self.set(user, line))
    }

    /// Set the password of a run's login. A line of a person called so would be lost: `has_person` says whether there is one.
    pub fn add_run(&mut self, user: &User, password: &Password) -> Result<Added> {
        let line = format!("{user}:{}:{RUN_REMARK}", new_hash(password, COST)?);
        Ok(self.set(user, Line::parse(line.as_bytes())))
    }

    /// Whether a line of this name was made for a person.
    pub fn has_person(&self, user: &User) -> bool {
        let mut logins = self.lines.iter().filter_map(|line| line.login.as_ref());
        logins.any(|login| login.user == user.0 && !login.is_run)
    }

    /// Remove a run's login; a person of that name stays.
    pub fn remove_run(&mut self, user: &User) {
        self.lines.retain(|line| !line.login.as_ref().is_some_and(|l| l.user == user.0 && l.is_run));
    }

    /// Put a line in the place of all of this user's.
    fn set(&mut self, user: &User, line: Line) -> Added {
        let Some(at) = self.lines.iter().position(|line| line.is_of(&user.0)) else {
            self.lines.push(line);
            return Added::New;
        };
        self.lines[at] = line;
        let mut n = 0..;
        self.lines.retain(|line| n.next() == Some(at) || !line.is_of(&user.0));
        Added::Changed
    }

    /// Remove every line of the user: were only the first to go, a second would open in its place. Says
    /// whether there was any.
    pub fn remove(&mut self, user: &User) -> bool {
        let before = self.lines.len();
        self.lines.retain(|line| !line.is_of(&user.0));
        self.lines.len() < before
    }

    /// Whether the password opens, for a person who asks. Whoever answers strangers uses `lock`.
    pub fn verify(&self, user: &User, password: &str) -> Answer {
        let lock = self.lock(&user.0);
        match self.lines.iter().find_map(|line| line.login.as_ref().filter(|l| l.user == user.0)) {
            None => Answer::NoSuchUser,
            Some(login) if !login.kind.is_checkable() => Answer::Unchecked(login.kind),
            Some(_) if lock.opens(password.as_bytes()) => Answer::Right,
            Some(_) => Answer::Wrong,
        }
    }

    /// What this user's password is tried on: a lock that nothing opens if there is no such user, or none
    /// that we can check.
    pub fn lock(&self, user: &str) -> Lock {
        let login = self.lines.iter().find_map(|line| line.login.as_ref().filter(|l| l.user == user));
        match login {
            Some(login) if login.kind.is_checkable() => Lock { hash: login.hash.clone(), real: true },
            _ => Lock { hash: self.dummy(), real: false },
        }
    }

    /// Whether there is anybody whom we could let in.
    pub fn admits_somebody(&self) -> bool {
        self.list().iter().any(|entry| entry.kind.is_checkable())
    }

    /// A hash of nothing known, as dear as the dearest in the file.
    fn dummy(&self) -> String {
        let logins = self.lines.iter().filter_map(|line| line.login.as_ref());
        let costs = logins.filter_map(|login| match login.kind {
            Kind::Bcrypt { cost } if cost <= MAX_COST => Some(cost),
            _ => None,
        });
        let cost = costs.max().unwrap_or(COST);
        format!("$2y${cost:02}$ThisSaltOpensNoDoor..uThisHashIsOfNoPasswordAtAll....")
    }
}

fn new_hash(password: &Password, cost: u32) -> Result<String> {
    // $2y$ is the one prefix that every crypt(3) and every htpasswd reads.
    Ok(bcrypt::hash_with_result(&password.0, cost)?.format_for_version(bcrypt::Version::TwoY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_line_is_told_from_a_persons_and_a_name_of_runs_is_nobodys() {
        let run = user("run-s4");
        assert!(run.ensure_person().unwrap_err().to_string().contains("names that begin with `run-`"));
        assert!(user("runa").ensure_person().is_ok());
        let mut all = file(&[("ana", "password1"), ("run-s4", "password2")]);
        let before = all.format();
        assert!(all.has_person(&run));
        all.remove_run(&run);
        assert_eq!(all.format(), before, "a person called so stays");
        all.remove(&run);
        assert!(!all.has_person(&run));
        all.add_run(&run, &password("password3")).unwrap();
        let mut again = Htpasswd::parse(&all.format());
        assert!(!again.has_person(&run));
        assert_eq!(again.verify(&run, "password3"), Answer::Right);
        again.remove_run(&run);
        assert_eq!(again.list().len(), 1);
    }

    fn user(name: &str) -> User {
        name.parse().unwrap()
    }

    fn password(text: &str) -> Password {
        text.parse().unwrap()
    }

    /// A file with one user, hashed at the least cost there is.
    fn file(users: &[(&str, &str)]) -> Htpasswd {
        let mut file = Htpasswd::default();
        for (name, secret) in users {
            file.add_at_cost(&user(name), &password(secret), 4).unwrap();
        }
        file
    }

    #[test]
    fn names_that_could_become_two_are_refused() {
        for bad in ["", "a:b", "a\nb", "a\tb", "a\0", "#a", " a", "a ", "é", &"a".repeat(65)] {
            assert!(bad.parse::<User>().is_err(), "{bad:?}");
        }
        for good in ["a", "alice", "a.b@c.org", "bob smith", "-x", &"a".repeat(64)] {
            assert_eq!(good.parse::<User>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn passwords_are_of_a_length_that_bcrypt_sees() {
        assert!("1234567".parse::<Password>().is_err());
        assert!("12345678".parse::<Password>().is_ok());
        assert!("x".repeat(72).parse::<Password>().is_ok());
        let err = "x".repeat(73).parse::<Password>().unwrap_err().to_string();
        assert!(err.contains("72") && err.contains("bcrypt"), "{err}");
        for bad in ["pass\nword1", "pässword1", "password\0"] {
            assert!(bad.parse::<Password>().is_err(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", password("hunter2hunter2")), "Password(…)");
    }

    #[test]
    fn a_generated_password_is_accepted_typed_easily_and_never_the_same() {
        let all: std::collections::HashSet<_> =
            (0..200).map(|_| Password::generate().unwrap().reveal().to_owned()).collect();
        assert_eq!(all.len(), 200);
        let mut letters = std::collections::HashSet::new();
        for text in &all {
            assert!(text.parse::<Password>().is_ok(), "{text}");
            assert_eq!(text.split('-').map(str::len).collect::<Vec<_>>(), [6, 6, 6, 6], "{text}");
            assert!(!text.contains(['0', 'o', '1', 'l', 'i', 'O', 'I']), "{text}");
            letters.extend(text.bytes());
        }
        assert_eq!(letters.len(), 32, "31 letters and the dash are all in use");
    }

    #[test]
    fn a_user_comes_changes_and_goes() {
        let mut file = Htpasswd::default();
        assert_eq!(file.add(&user("alice"), &password("correct horse")).unwrap(), Added::New);
        assert_eq!(file.list(), [Entry { user: "alice".into(), kind: Kind::Bcrypt { cost: 12 } }]);
        assert!(file.format().starts_with(b"alice:$2y$12$") && file.format().len() == "alice:\n".len() + 60);
        assert_eq!(file.verify(&user("alice"), "correct horse"), Answer::Right);
        assert_eq!(file.verify(&user("alice"), "correct hors"), Answer::Wrong);
        assert_eq!(file.verify(&user("bob"), "correct horse"), Answer::NoSuchUser);
        assert_eq!(file.add_at_cost(&user("alice"), &password("battery staple"), 4).unwrap(), Added::Changed);
        assert_eq!(file.verify(&user("alice"), "battery staple"), Answer::Right);
        assert_eq!(file.verify(&user("alice"), "correct horse"), Answer::Wrong);
        assert!(file.remove(&user("alice")));
        assert!(!file.remove(&user("alice")));
        assert_eq!(file.format(), b"");
    }

    #[test]
    fn lines_of_others_are_kept_to_the_byte() {
        let theirs: &[u8] =
            b"# by hand\n\ncarol:$apr1$abc$def:a remark\r\nd\xffve:x\nno colon\n:nobody\ndan:";
        let mut file = Htpasswd::parse(theirs);
        file.add_at_cost(&user("alice"), &password("12345678"), 4).unwrap();
        let text = file.format();
        assert_eq!(&text[..theirs.len()], theirs);
        assert!(text[theirs.len()..].starts_with(b"\nalice:$2y$04$"));
        assert!(file.remove(&user("alice")));
        assert_eq!(file.format(), [theirs, b"\n"].concat());
    }

    #[test]
    fn hashes_of_other_kinds_are_named_and_open_nothing() {
        let bcrypt31 = format!("$2y$31${}", ".".repeat(53));
        let table = [
            ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "apr1 (MD5)"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
            ("{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "salted SHA-1"),
            ("{PLAIN}password", "plain text"),
            ("rqXexS6ZhobKA", "crypt"),
            ("$6$salt$hash", "crypt"),
            ("$2y$10$short", "crypt"),
            ("password", "crypt"),
            ("", "crypt"),
            (&bcrypt31, "bcrypt, cost 31"),
        ];
        for (hash, kind) in table {
            let file = Htpasswd::parse(format!("eve:{hash}\n").as_bytes());
            assert_eq!(file.list()[0].kind.to_string(), kind, "{hash}");
            assert_eq!(file.verify(&user("eve"), "password"), Answer::Unchecked(file.list()[0].kind));
            assert!(!file.admits_somebody(), "{hash}");
        }
    }

    #[test]
    fn of_two_lines_the_first_counts_and_both_go() {
        let one = file(&[("alice", "first one")]).format();
        let two = file(&[("alice", "second one")]).format();
        let mut both = Htpasswd::parse(&[one, b"# between\n".to_vec(), two].concat());
        assert_eq!(both.list().len(), 1);
        assert_eq!(both.verify(&user("alice"), "first one"), Answer::Right);
        assert_eq!(both.verify(&user("alice"), "second one"), Answer::Wrong);
        let mut changed = both.clone();
        changed.add_at_cost(&user("alice"), &password("third one"), 4).unwrap();
        assert_eq!(changed.lines.len(), 2);
        assert!(both.remove(&user("alice")));
        assert_eq!(both.format(), b"# between\n");
    }

    #[test]
    fn nobody_costs_as_much_as_the_dearest_and_never_opens() {
        let mut file = file(&[("alice", "12345678")]);
        assert!(file.lock("nobody").hash().starts_with("$2y$04$"));
        file.add_at_cost(&user("bob"), &password("12345678"), 6).unwrap();
        let lock = file.lock("nobody");
        assert_eq!(lock.hash().parse::<HashParts>().unwrap().get_cost(), 6);
        assert!(!lock.opens(b"12345678"));
        assert!(Htpasswd::default().lock("nobody").hash().starts_with("$2y$12$"));
        assert!(!Lock { real: false, ..file.lock("alice") }.opens(b"12345678"));
    }

    /// Made by `htpasswd -nbB -C 5`: we read what others write.
    #[test]
    fn what_htpasswd_wrote_opens_here() {
        let file = Htpasswd::parse(HTPASSWD.as_bytes());
        assert_eq!(file.verify(&user("ann"), "correct horse"), Answer::Right);
        assert_eq!(file.verify(&user("ann"), "Correct horse"), Answer::Wrong);
    }

    const HTPASSWD: &str = "ann:$2y$05$c0ImoSkpDEWz66WPxQuoqeblKpmE946bWLgI33KqBAmxdatPrfASW\n";

    #[test]
    fn fuzz_htpasswd_is_kept_byte_for_byte_and_listed() {
        crate::fuzz::run("htpasswd", &["$2y$12$", "$apr1$", "{SHA}", "ana:", "$2y$99$"], |bytes| {
            let file = Htpasswd::parse(bytes);
            let whole = [bytes.strip_suffix(b"\n").unwrap_or(bytes), b"\n"].concat();
            assert!(whole == b"\n" || file.format() == whole);
            let rows: Vec<_> = file
                .list()
                .iter()
                .map(|entry| vec![entry.user.clone(), entry.kind.to_string(), String::new()])
                .collect();
            let _ = (crate::ui::table(&rows), file.admits_somebody());
            for entry in file.list() {
                assert!(file.lock(&entry.user).hash().len() < bytes.len() + 100);
                let mut changed = file.clone();
                let user: User = entry.user.parse()?;
                assert!(changed.remove(&user) && changed.list().len() < file.list().len());
            }
            Ok(())
        });
    }
}
