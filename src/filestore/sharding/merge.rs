//! One ordered listing of several providers.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::error::Result;
use super::super::provider::{Listed, Provider, Visit};
use crate::checksum::Checksum;

/// Blobs asked of one provider at a time.
const PAGE: usize = 1000;

/// One provider's part of the listing.
struct Part {
    provider: Arc<dyn Provider>,
    page: VecDeque<(Checksum, u64)>,
    last: Option<Checksum>,
    ended: bool,
}

impl Part {
    /// Its next blob, not taken yet. Strays are shown as they come.
    fn peek(&mut self, visit: &mut Visit<'_>) -> Result<ControlFlow<(), Option<(Checksum, u64)>>> {
        while self.page.is_empty() && !self.ended {
            let (page, mut broken) = (&mut self.page, false);
            self.provider.list(self.last.as_ref(), &mut |listed| match listed {
                Listed::Blob { sum, size } => {
                    page.push_back((sum, size));
                    if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
                stray @ Listed::Stray(_) => {
                    let shown = visit(stray);
                    broken |= shown.is_break();
                    shown
                }
            })?;
            if broken {
                return Ok(ControlFlow::Break(()));
            }
            self.ended = self.page.len() < PAGE;
            self.last = self.page.back().map(|(sum, _)| *sum).or(self.last);
        }
        Ok(ControlFlow::Continue(self.page.front().copied()))
    }
}

/// Shows every blob after `after` once, in order.
pub fn list(providers: &[Arc<dyn Provider>], after: Option<&Checksum>, visit: &mut Visit<'_>) -> Result<()> {
    let part = |provider: &Arc<dyn Provider>| Part {
        provider: Arc::clone(provider),
        page: VecDeque::new(),
        last: after.copied(),
        ended: false,
    };
    let mut parts: Vec<Part> = providers.iter().map(part).collect();
    loop {
        let mut least: Option<(Checksum, u64)> = None;
        for part in &mut parts {
            match part.peek(visit)? {
                ControlFlow::Break(()) => return Ok(()),
                ControlFlow::Continue(Some(next)) if least.is_none_or(|(sum, _)| next.0 < sum) => {
                    least = Some(next);
                }
                ControlFlow::Continue(_) => {}
            }
        }
        let Some((sum, size)) = least else { return Ok(()) };
        for part in &mut parts {
            if part.page.front().is_some_and(|(next, _)| *next == sum) {
                part.page.pop_front();
            }
        }
        if visit(Listed::Blob { sum, size }).is_break() {
            return Ok(());
        }
    }
}
