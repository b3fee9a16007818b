//! What there is over there, and what is to be done about each of it: listed by the machine, decided here.

use super::{Fetched, Here, Home, dir_of, files::Files};
use crate::{
    gpu::{
        agent::site::{Ask, Made, Offered, Root},
        job::Nonsense,
        left::Left,
        wire::Wire,
    },
    host::beneath::{Rel, Spelling, Stamp, stays_inside},
};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, HashMap};

/// Bytes of the longest list: as many files as are ever taken, with long names. It is not held in memory.
const OFFERS: u64 = 8 << 30;

/// Bytes of memory for what is to be taken in one look. The rest is found again at the next.
const WEIGHT: usize = 32 << 20;

/// Said of what is not brought home and not missed.
pub const NOTHING: &str = "there is nothing in it to bring home";

/// Files that are watched for whether they still change.
const SEEN: usize = 200_000;

/// A file must have rested so long, by the clock of its own machine, in milliseconds.
const REST: u64 = 2000;
/// The same where there are too many to be watched.
const LONG_REST: u64 = 60_000;

/// A file that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Take {
    pub root: Root,
    pub there: Rel,
    pub home: Rel,
    pub stamp: Stamp,
    /// Where its data is; all of it is, where nothing is said.
    pub extents: Option<Vec<(u64, u64)>>,
}

impl Take {
    /// Bytes that it takes here.
    pub fn data(&self) -> u64 {
        let sum =
            |extents: &Vec<(u64, u64)>| extents.iter().fold(0, |sum: u64, (_, len)| sum.saturating_add(*len));
        let extents = self.extents.as_ref().map(sum);
        extents.unwrap_or(self.stamp.len)
    }

    fn weight(&self) -> usize {
        200 + 2 * self.home.as_bytes().len() + 16 * self.extents.as_ref().map_or(0, Vec::len)
    }
}

/// A link that is to be made here.
pub(super) struct NewLink {
    pub root: Root,
    pub home: Rel,
    pub to: Spelling,
}

/// Another name for a file that is here, or will be.
pub(super) struct NewName {
    pub root: Root,
    pub home: Rel,
    pub stamp: Stamp,
    pub first: Rel,
}

/// All that is to be done about what was listed.
#[derive(Default)]
pub(super) struct Survey {
    /// The newest first: where time is short, it is the last checkpoint that counts.
    pub takes: Vec<Take>,
    pub links: Vec<NewLink>,
    pub names: Vec<NewName>,
    pub dirs: Vec<Rel>,
    pub left: Left,
    /// Files that do not come now, and their bytes: they may still change, or there is no end to them.
    pub later: (u64, u64),
    /// Bytes of what is to be taken.
    planned: u64,
    weight: usize,
}

impl Survey {
    pub fn put_off(&mut self, bytes: u64) {
        self.later.0 += 1;
        self.later.1 = self.later.1.saturating_add(bytes);
    }

    pub fn fetched(self, whole: bool) -> Fetched {
        match self.later {
            (0, _) if whole => Fetched::Home(self.left),
            (files, bytes) => Fetched::Coming { files, bytes, left: self.left },
        }
    }

    fn take(&mut self, take: Take) {
        self.weight += take.weight();
        self.planned = self.planned.saturating_add(take.data());
        self.takes.push(take);
        if self.weight > 2 * WEIGHT {
            self.cut();
        }
    }

    /// The newest of them, as many as there is memory for.
    pub fn cut(&mut self) {
        self.takes.sort_by_key(|take| std::cmp::Reverse(take.stamp.nanos));
        self.weight = 0;
        let fits = self.takes.iter().take_while(|take| {
            self.weight += take.weight();
            self.weight <= WEIGHT
        });
        let fits = fits.count();
        for take in self.takes.split_off(fits) {
            self.put_off(take.data());
        }
    }
}

/// What is to be done about an offer. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    Here,
    /// It may still change.
    Later,
    Take(Take),
    Link,
    Dir,
    Leave(String),
    /// There is nothing to bring.
    Special(String),
}

impl Home<'_> {
    /// `ended`: the script makes nothing more.
    pub(super) fn survey(&self, wire: &mut Wire, files: &mut Files, ended: bool) -> Result<Survey> {
        wire.tell(&Ask::List)?;
        let (mut survey, mut seen) = (Survey::default(), HashMap::new());
        let mut firsts: BTreeMap<(u64, u64), Rel> = BTreeMap::new();
        wire.draw_each(OFFERS, &mut |offer: Offered| {
            let Offered { root, path, what } = offer;
            let shown = format!("{}/{path}", dir_of(root));
            let bytes = match &what {
                Made::File { stamp, .. } => stamp.len,
                Made::Unreadable { bytes, .. } => *bytes,
                _ => 0,
            };
            let there = match Rel::try_from(path) {
                Ok(there) => there,
                Err(why) => {
                    // What could not be listed has no name of its own.
                    let why = if let Made::Unreadable { why, .. } = what { why } else { why };
                    self.leave(files, &mut survey, &shown, &why, bytes);
                    return Ok(());
                }
            };
            let home = match there.under(dir_of(root)) {
                Ok(home) => home,
                Err(why) => {
                    self.leave(files, &mut survey, &shown, &why.to_string(), bytes);
                    return Ok(());
                }
            };
            let rested = match &what {
                Made::File { stamp, age, .. } => {
                    let same = files.seen.get(&home) == Some(stamp) && *age >= REST;
                    same || files.seen.len() >= SEEN && *age >= LONG_REST
                }
                _ => true,
            };
            let planned = (files.here.len() + survey.takes.len(), files.bytes.saturating_add(survey.planned));
            let decision = self.decide(files, (root, &there, &home), &what, (planned, ended || rested));
            match (decision, what) {
                // Other names of it are names here, too.
                (Decision::Here, Made::File { stamp, shared: Some(device), .. }) if firsts.len() < SEEN => {
                    firsts.entry((device, stamp.inode)).or_insert(home);
                }
                (Decision::Here, _) => {}
                (Decision::Later, Made::File { stamp, .. }) => {
                    survey.put_off(stamp.len);
                    if seen.len() < SEEN {
                        seen.insert(home, stamp);
                    }
                }
                (Decision::Take(take), Made::File { stamp, shared: Some(device), .. }) => {
                    // Once, whatever it is called besides.
                    match firsts.get(&(device, stamp.inode)) {
                        Some(first) => survey.names.push(NewName { root, home, stamp, first: first.clone() }),
                        None => {
                            if firsts.len() < SEEN {
                                firsts.insert((device, stamp.inode), home);
                            }
                            survey.take(take);
                        }
                    }
                }
                (Decision::Take(take), _) => survey.take(take),
                (Decision::Link, Made::Link { to }) => survey.links.push(NewLink { root, home, to }),
                (Decision::Dir, _) => survey.dirs.push(home),
                (Decision::Leave(why), _) => self.leave(files, &mut survey, &shown, &why, bytes),
                (Decision::Special(what), _) => {
                    survey.left.add_special(&shown, &what);
                    files.tell(&shown, self.say, |path| format!("{path} is {what}: {NOTHING}"));
                }
                // Nothing else is decided about these.
                (Decision::Later | Decision::Link, _) => {}
            }
            Ok(())
        })
        .context("hearing what there is to bring home")?;
        files.seen = seen;
        survey.cut();
        Ok(survey)
    }

    pub(super) fn leave(&self, files: &mut Files, survey: &mut Survey, path: &str, why: &str, bytes: u64) {
        survey.left.add(path, why, bytes);
        let why = crate::gpu::wire::shown(&why.chars().take(200).collect::<String>());
        files.tell(path, self.say, |path| format!("{path} is left on the machine: {why}"));
    }

    fn decide(
        &self,
        files: &Files,
        (root, there, home): (Root, &Rel, &Rel),
        what: &Made,
        ((count, bytes), complete): ((usize, u64), bool),
    ) -> Decision {
        if home.is_part() {
            return Decision::Leave("its name is one of ours".into());
        }
        let before = files.here.get(&(root, home.clone()));
        let (stamp, extents) = match what {
            Made::Unreadable { why, .. } => return Decision::Leave(why.clone()),
            Made::Special { what } => return Decision::Special(what.chars().take(100).collect()),
            Made::Dir => return Decision::Dir,
            Made::Link { to } => {
                let inside = to.clone().bytes().map_err(anyhow::Error::msg);
                return match inside.and_then(|to| stays_inside(there, &to)) {
                    _ if before == Some(&Here::Link(to.clone())) => Decision::Here,
                    Ok(()) if self.is_noted_out() => Decision::Leave(self.too_often()),
                    Ok(()) => Decision::Link,
                    Err(why) => Decision::Leave(format!("a link to {to}: {why}")),
                };
            }
            Made::File { stamp, extents, .. } => (*stamp, extents.clone()),
        };
        if before == Some(&Here::File(stamp)) {
            return Decision::Here;
        }
        if !complete {
            return Decision::Later;
        }
        if let Some(extents) = &extents
            && !are_extents(extents, stamp.len)
        {
            return Decision::Leave(Nonsense("it has data where it cannot have any".into()).to_string());
        }
        // That it has come before, in another state, is a note more and not a file more.
        if before.is_some() && self.is_noted_out() {
            return Decision::Leave(self.too_often());
        }
        if before.is_none() && count >= self.quota.files {
            let most = self.quota.files;
            return Decision::Leave(format!("more than {most} files: gpu.max_result_files says how many"));
        }
        let take = Take { root, there: there.clone(), home: home.clone(), stamp, extents };
        let old = match before {
            Some(Here::File(stamp)) => stamp.len,
            _ => 0,
        };
        if bytes.saturating_sub(old).saturating_add(take.data()) > self.quota.all {
            let most = crate::hq::disk::size_words(self.quota.all);
            return Decision::Leave(format!(
                "all of it is more than {most}: gpu.max_result_size says how much"
            ));
        }
        Decision::Take(take)
    }

    fn too_often(&self) -> String {
        format!("files have come anew {} times", self.quota.notes)
    }
}

/// Pieces one after another, none empty, within a file of this length. Pure.
fn are_extents(extents: &[(u64, u64)], len: u64) -> bool {
    let mut ended = 0;
    extents.iter().all(|(from, long)| {
        let good = *from >= ended && *long > 0;
        ended = from.saturating_add(*long);
        good && ended <= len
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stands_one_piece_after_another_within_its_file() {
        for (extents, good) in [
            (vec![], true),
            (vec![(0, 4), (4, 4)], true),
            (vec![(2, 1), (7, 1)], true),
            (vec![(0, 0)], false),
            (vec![(4, 4), (0, 4)], false),
            (vec![(0, 5), (4, 1)], false),
            (vec![(7, 2)], false),
            (vec![(u64::MAX, 2)], false),
        ] {
            assert_eq!(are_extents(&extents, 8), good, "{extents:?}");
        }
    }
}
