//! What one digest's pull is named by: the sources of its shares, which are tried in turn. Pure.
//!
//! A registry that refuses or fails holds nobody up who names the same digest of another one: each failure
//! lets the others go first, and what refused for good is not tried again before it is asked for anew.

use std::mem;

use crate::image::Source;

#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Named>);

#[derive(Debug)]
struct Named {
    source: Source,
    shares: usize,
    /// It refused for good.
    refused: bool,
}

impl Sources {
    /// Another share names this source. Whether that gives something new to try.
    pub(super) fn join(&mut self, source: &Source) -> bool {
        if let Some(named) = self.named(source) {
            named.shares += 1;
            return mem::take(&mut named.refused);
        }
        self.0.push(Named { source: source.clone(), shares: 1, refused: false });
        true
    }

    /// A share is gone. Without one a source is not tried.
    pub(super) fn leave(&mut self, source: &Source) {
        if let Some(named) = self.named(source) {
            named.shares -= 1;
            self.0.retain(|named| named.shares > 0);
        }
    }

    /// Somebody asks for this source anew.
    pub(super) fn ask(&mut self, source: &Source) {
        if let Some(named) = self.named(source) {
            named.refused = false;
        }
    }

    /// What to try; none if all there is refused for good.
    pub(super) fn next(&self) -> Option<Source> {
        self.0.iter().find(|named| !named.refused).map(|named| named.source.clone())
    }

    /// An attempt came to nothing, for good or not.
    pub(super) fn failed(&mut self, source: &Source, lasting: bool) {
        if let Some(place) = self.0.iter().position(|named| named.source == *source) {
            let mut named = self.0.remove(place);
            named.refused = lasting;
            self.0.push(named);
        }
    }

    fn named(&mut self, source: &Source) -> Option<&mut Named> {
        self.0.iter_mut().find(|named| named.source == *source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oci(reference: &str) -> Source {
        Source::Oci(reference.to_owned())
    }

    #[test]
    fn sources_are_tried_in_turn_and_only_while_somebody_names_them() {
        let (a, b) = (oci("a"), oci("b"));
        let mut sources = Sources::default();
        assert!(sources.join(&a) && !sources.join(&a) && sources.join(&b));
        assert_eq!(sources.next(), Some(a.clone()));
        sources.failed(&a, false);
        assert_eq!(sources.next(), Some(b.clone()));
        sources.failed(&b, false);
        sources.leave(&a);
        assert_eq!(sources.next(), Some(a.clone()), "a share is left");
        sources.leave(&a);
        assert_eq!(sources.next(), Some(b));
        assert!(sources.join(&a), "it is new again");
    }

    #[test]
    fn what_refused_for_good_is_tried_when_it_is_asked_for_anew() {
        let (a, b) = (oci("a"), oci("b"));
        let mut sources = Sources::default();
        sources.join(&a);
        sources.failed(&a, true);
        assert_eq!(sources.next(), None);
        sources.ask(&a);
        assert_eq!(sources.next(), Some(a.clone()));
        sources.failed(&a, true);
        sources.join(&b);
        assert_eq!(sources.next(), Some(b.clone()));
        sources.failed(&b, false);
        assert_eq!(sources.next(), Some(b), "the other one is not tried");
        assert!(sources.join(&a));
        assert_eq!(sources.next(), Some(a));
    }
}
