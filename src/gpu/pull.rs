//! What was kept of a run comes home: the run that is over goes on for as long as that takes, with its journal, its driver
//! and its sweep, on a small machine that is made of what was kept.

use super::{
    offer::SMALL,
    provider::{Offer, Provider},
    runner::HOME_FROM_COPY,
    runs::Held,
    spec::{Spec, Spot},
    state::{Event, Keep, Phase, State},
};
use anyhow::Result;
use time::OffsetDateTime;

/// What there is to be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It goes on, and results come home meanwhile.
    UnderWay,
    /// Somebody is at it.
    Pulling,
    /// Nothing is missing.
    Home,
    /// The rest of it.
    Kept,
    /// The rest of it is lost, for this reason.
    Lost(String),
}

/// Pure.
pub fn stand(state: &State) -> Stand {
    match (&state.kept, &state.unfetched) {
        _ if state.is_pull() => Stand::Pulling,
        _ if state.phase != Phase::Done => Stand::UnderWay,
        (Some(_), _) => Stand::Kept,
        (None, Some(why)) => Stand::Lost(why.clone()),
        (None, None) => Stand::Home,
    }
}

/// Where it is; looked for where nobody has heard whether it came about. None: it did not.
pub fn find(held: &mut Held, provider: &dyn Provider, now: OffsetDateTime) -> Result<Option<String>> {
    if held.state.kept == Some(Keep::Asked)
        && let Some(place) = provider.keep(&held.state.spec.run)?
    {
        held.note(now, &Event::Kept { place })?;
    }
    Ok(held.state.copy().map(str::to_owned))
}

/// What is asked for: something small, where the copy is. None: there never was a machine. Pure.
pub fn wish(state: &State, sizes: Vec<String>) -> Option<Spec> {
    let machine = state.rentals.iter().rfind(|rental| rental.came.is_some())?;
    Some(Spec {
        sizes: if sizes.is_empty() { SMALL.map(Into::into).to_vec() } else { sizes },
        regions: vec![machine.offer.region.clone()],
        spot: Spot::Never,
        max_seconds: Some(HOME_FROM_COPY.as_secs()),
        max_cost: None,
        ..state.spec.clone()
    })
}

/// A disk of no zone goes with a machine of none. Pure.
pub fn unzoned(offers: Vec<Offer>) -> Vec<Offer> {
    offers.into_iter().filter(|offer| offer.zone.is_none()).collect()
}
