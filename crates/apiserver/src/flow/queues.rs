//! The queues of one priority level: who runs next, fairly, within a number of seats.
//!
//! A request takes one or more seats while it runs. What does not fit waits in a queue; a flow is dealt a few queues
//! (shuffle sharding) and its request joins the one with the least waiting work, so that one flow can fill its own hand
//! and hardly anyone else's. The head of the queue that would finish first in virtual time runs next: virtual time
//! passes as if every busy queue were served at once and equally, and a queue's start moves on by the work it
//! was given. That is upstream's algorithm; here the sums it needs are kept, not counted each time, a level
//! without a line is entered without looking at other queues, and a removed queue is one that is no longer dealt.
//!
//! Plain data without locks or clocks: callers bring both. `N` describes a request, `W` is how a waiting one is told.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::share::Integrator;

/// How long a request is expected to take, in seconds, until it has.
const EXPECTED: f64 = 0.003;
/// The largest hand a hash value has entropy for.
const HAND: usize = 15;

/// What a request costs: seats while it runs, and seats for a while afterwards (its watchers are being told).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    pub initial: usize,
    pub last: usize,
    pub latency: Duration,
}

impl Work {
    pub const ONE: Work = Work::seats(1);

    pub const fn seats(initial: usize) -> Self {
        Work {
            initial,
            last: 0,
            latency: Duration::ZERO,
        }
    }
    pub fn most(&self) -> usize {
        self.initial.max(self.last)
    }
    /// In seat-seconds.
    fn total(&self) -> f64 {
        self.initial as f64 * EXPECTED + self.last as f64 * self.latency.as_secs_f64()
    }
}

/// How a level deals with what does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Everything fits.
    Exempt,
    Reject,
    Queue {
        queues: usize,
        hand: usize,
        length: usize,
    },
}

/// A request that waits.
pub struct Waiting<N, W> {
    pub ticket: u64,
    pub arrived: Instant,
    arrived_r: f64,
    pub work: Work,
    pub note: N,
    tell: W,
}

/// A request that runs; to be handed back to [`Queues::finish`].
#[derive(Debug)]
pub struct Running {
    pub queue: Option<usize>,
    pub work: Work,
    pub started: Instant,
    slot: usize,
}

/// What is remembered of a running request, for those who look.
pub struct Noted<N> {
    pub queue: Option<usize>,
    pub arrived: Instant,
    pub started: Instant,
    pub work: Work,
    pub note: N,
}

pub struct Queue<N, W> {
    pub waiting: VecDeque<Waiting<N, W>>,
    waiting_work: f64,
    pub executing: usize,
    pub seats: usize,
    /// Virtual time at which its next request would start.
    pub next_r: f64,
}

impl<N, W> Queue<N, W> {
    fn new() -> Self {
        Queue {
            waiting: VecDeque::new(),
            waiting_work: 0.0,
            executing: 0,
            seats: 0,
            next_r: 0.0,
        }
    }
    fn is_active(&self) -> bool {
        self.executing > 0 || !self.waiting.is_empty()
    }
    /// No request starts in virtual time before it arrived.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next_r = self.next_r.max(first.arrived_r);
        }
    }
    /// Initial seats, largest seats, and work of those waiting.
    pub fn sums(&self) -> (usize, usize, f64) {
        self.waiting.iter().fold((0, 0, 0.0), |(initial, most, work), waiting| {
            (
                initial + waiting.work.initial,
                most + waiting.work.most(),
                work + waiting.work.total(),
            )
        })
    }
}

/// What became of a request that asked.
pub enum Placed<W> {
    Run(Running),
    /// It waits; others may have become ready to run (or this one already has, if it is among them).
    Wait {
        queue: usize,
        ticket: u64,
        ready: Vec<(W, Running)>,
    },
    /// Turned away.
    Full,
}

pub struct Queues<N, W> {
    shape: Shape,
    limit: usize,
    pub queues: Vec<Queue<N, W>>,
    /// Virtual time, and the real time it was read at.
    r: f64,
    at: Instant,
    active: usize,
    /// Seats of running requests that came through a queue.
    queued_seats: usize,
    pub waiting: usize,
    pub waiting_seats: usize,
    pub executing: usize,
    pub seats: usize,
    robin: usize,
    enqueues: usize,
    tickets: u64,
    /// Seats that stay taken after their request, until when.
    lingering: BinaryHeap<Reverse<(Instant, usize, usize)>>,
    pub demand: Integrator,
    pub running: Vec<Option<Noted<N>>>,
    free: Vec<usize>,
    pub dispatched: u64,
    pub rejected: u64,
    pub timed_out: u64,
    pub cancelled: u64,
    /// How often the next request in turn found too few seats.
    pub no_room: u64,
}

const NO_QUEUE: usize = usize::MAX;

impl<N, W> Queues<N, W> {
    pub fn new(shape: Shape, limit: usize, now: Instant) -> Self {
        let mut queues = Queues {
            shape: Shape::Reject,
            limit,
            queues: Vec::new(),
            r: 0.0,
            at: now,
            active: 0,
            queued_seats: 0,
            waiting: 0,
            waiting_seats: 0,
            executing: 0,
            seats: 0,
            robin: 0,
            enqueues: 0,
            tickets: 0,
            lingering: BinaryHeap::new(),
            demand: Integrator::new(now),
            running: Vec::new(),
            free: Vec::new(),
            dispatched: 0,
            rejected: 0,
            timed_out: 0,
            cancelled: 0,
            no_room: 0,
        };
        queues.reshape(shape);
        queues
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
        let wanted = match shape {
            Shape::Queue { queues, .. } => queues.max(1),
            _ => 0,
        };
        // Surplus queues run dry and go when nothing is left in them.
        while self.queues.len() > wanted
            && self
                .queues
                .last()
                .is_some_and(|queue| !queue.is_active() && queue.seats == 0)
        {
            self.queues.pop();
        }
        while self.queues.len() < wanted {
            self.queues.push(Queue::new());
        }
        if self.robin >= self.queues.len() {
            self.robin = 0;
        }
    }

    /// Changes shape and number of seats; returns who may run now.
    pub fn configure(&mut self, now: Instant, shape: Shape, limit: usize) -> Vec<(W, Running)> {
        self.sync(now);
        self.limit = limit;
        if self.shape != shape || shape == Shape::Reject {
            self.reshape(shape);
        }
        self.dispatch(now)
    }

    pub fn is_exempt(&self) -> bool {
        self.shape == Shape::Exempt
    }

    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.executing == 0
    }

    /// Virtual time passes.
    fn sync(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        if self.active == 0 {
            // Nobody remembers it: start over, so that it never grows beyond what a float resolves.
            self.r = 0.0;
            return;
        }
        let wanted = (self.queued_seats + self.waiting_seats).min(self.limit);
        self.r += passed * wanted as f64 / self.active as f64;
    }

    fn fits(&self, seats: usize) -> bool {
        match self.shape {
            Shape::Exempt => true,
            _ if seats > self.limit => self.executing == 0,
            _ => self.seats + seats <= self.limit,
        }
    }

    fn note_demand(&mut self, now: Instant) {
        self.demand.set(now, (self.seats + self.waiting_seats) as f64);
    }

    /// A request asks. `tell` makes what it is told by; it is called only if the request has to wait.
    pub fn place(&mut self, now: Instant, hash: u64, work: Work, note: N, tell: impl FnOnce() -> W) -> Placed<W> {
        self.sync(now);
        self.expire(now);
        let (queues, hand, length) = match self.shape {
            Shape::Queue { queues, hand, length } => (queues, hand, length),
            _ if self.fits(work.most()) => return Placed::Run(self.run(now, now, None, work, note)),
            _ => {
                self.rejected += 1;
                return Placed::Full;
            }
        };
        let index = self.shuffle(hash, queues, hand);
        if self.waiting == 0 && self.seats < self.limit && self.fits(work.most()) {
            self.robin = index;
            self.wake(index);
            return Placed::Run(self.run(now, now, Some(index), self.cut(work), note));
        }
        if self.seats >= self.limit && self.queues[index].waiting.len() >= length {
            self.rejected += 1;
            return Placed::Full;
        }
        self.wake(index);
        self.tickets += 1;
        let ticket = self.tickets;
        let queue = &mut self.queues[index];
        queue.waiting_work += work.total();
        queue.waiting.push_back(Waiting {
            ticket,
            arrived: now,
            arrived_r: self.r,
            work,
            note,
            tell: tell(),
        });
        queue.bound();
        self.waiting += 1;
        self.waiting_seats += work.most();
        self.note_demand(now);
        Placed::Wait {
            queue: index,
            ticket,
            ready: self.dispatch(now),
        }
    }

    /// A queue that gets a request while it has none starts at the present.
    fn wake(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if !queue.is_active() {
            queue.next_r = self.r;
            self.active += 1;
        }
    }

    fn settle(&mut self, index: usize) {
        if !self.queues[index].is_active() {
            self.active -= 1;
        }
    }

    /// Seats held afterwards cannot be more than there are: fewer for longer.
    fn cut(&self, mut work: Work) -> Work {
        if work.last > self.limit && self.limit > 0 {
            work.latency = work.latency.mul_f64(work.last as f64 / self.limit as f64);
            work.last = self.limit;
        }
        work
    }

    fn run(&mut self, now: Instant, arrived: Instant, queue: Option<usize>, work: Work, note: N) -> Running {
        self.executing += 1;
        self.seats += work.most();
        self.dispatched += 1;
        if let Some(index) = queue {
            self.queued_seats += work.most();
            let queue = &mut self.queues[index];
            queue.executing += 1;
            queue.seats += work.most();
            queue.next_r += work.total();
            queue.bound();
        }
        self.note_demand(now);
        let noted = Some(Noted {
            queue,
            arrived,
            started: now,
            work,
            note,
        });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.running[slot] = noted;
                slot
            }
            None => {
                self.running.push(noted);
                self.running.len() - 1
            }
        };
        Running {
            queue,
            work,
            started: now,
            slot,
        }
    }

    /// The queue of the flow's hand with the least waiting work. The hand is visited from a different
    /// card each time, so that equal ones share.
    fn shuffle(&mut self, hash: u64, queues: usize, hand: usize) -> usize {
        let queues = queues.clamp(1, self.queues.len());
        let mut cards = [0usize; HAND];
        let count = deal(hash, queues, hand, &mut cards);
        let offset = self.enqueues % count;
        self.enqueues = self.enqueues.wrapping_add(1);
        let mut best = cards[offset];
        for step in 1..count {
            let card = cards[(offset + step) % count];
            if self.queues[card].waiting_work < self.queues[best].waiting_work {
                best = card;
            }
        }
        best
    }

    /// Lets run what may.
    fn dispatch(&mut self, now: Instant) -> Vec<(W, Running)> {
        let mut ready = Vec::new();
        while self.waiting > 0 && self.seats < self.limit {
            let Some(index) = self.next() else { break };
            let Some(first) = self.queues[index].waiting.front() else {
                break;
            };
            if !self.fits(first.work.most()) {
                self.no_room += 1;
                break;
            }
            let Some(first) = self.leave(index, 0) else { break };
            self.robin = index;
            let work = self.cut(first.work);
            let running = self.run(now, first.arrived, Some(index), work, first.note);
            ready.push((first.tell, running));
        }
        ready
    }

    /// The queue whose first request would finish earliest; among equals the next in turn.
    fn next(&self) -> Option<usize> {
        let count = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for step in 1..=count {
            let index = (self.robin + step) % count;
            let queue = &self.queues[index];
            if let Some(first) = queue.waiting.front() {
                let finish = queue.next_r + first.work.total();
                if best.is_none_or(|(least, _)| finish < least) {
                    best = Some((finish, index));
                }
            }
        }
        best.map(|(_, index)| index)
    }

    /// Takes a waiting request out; the queue may have become inactive, which the caller settles.
    fn leave(&mut self, index: usize, at: usize) -> Option<Waiting<N, W>> {
        let queue = self.queues.get_mut(index)?;
        let waiting = queue.waiting.remove(at)?;
        queue.waiting_work = if queue.waiting.is_empty() {
            0.0
        } else {
            (queue.waiting_work - waiting.work.total()).max(0.0)
        };
        self.waiting -= 1;
        self.waiting_seats -= waiting.work.most();
        Some(waiting)
    }

    /// A waiting request gives up. `None`: it runs already.
    pub fn cancel(&mut self, now: Instant, index: usize, ticket: u64, timed_out: bool) -> Option<N> {
        self.sync(now);
        let at = self
            .queues
            .get(index)?
            .waiting
            .iter()
            .position(|waiting| waiting.ticket == ticket)?;
        let waiting = self.leave(index, at)?;
        self.queues[index].bound();
        self.settle(index);
        self.note_demand(now);
        self.rejected += 1;
        if timed_out {
            self.timed_out += 1;
        } else {
            self.cancelled += 1;
        }
        Some(waiting.note)
    }

    /// A request is done; returns who may run now.
    pub fn finish(&mut self, now: Instant, running: &Running) -> Vec<(W, Running)> {
        self.sync(now);
        self.executing -= 1;
        if let Some(noted) = self.running.get_mut(running.slot) {
            *noted = None;
            self.free.push(running.slot);
        }
        if let Some(index) = running.queue {
            // It was charged for the expected time; now for what it took.
            let took = now.saturating_duration_since(running.started).as_secs_f64();
            let queue = &mut self.queues[index];
            queue.executing -= 1;
            queue.next_r -= running.work.initial as f64 * (EXPECTED - took);
            queue.bound();
            self.settle(index);
        }
        let seats = running.work.most();
        if running.work.latency.is_zero() || self.shape == Shape::Exempt {
            self.release(running.queue.unwrap_or(NO_QUEUE), seats);
        } else {
            let until = now + running.work.latency;
            self.lingering
                .push(Reverse((until, seats, running.queue.unwrap_or(NO_QUEUE))));
        }
        self.expire(now);
        self.note_demand(now);
        self.dispatch(now)
    }

    fn release(&mut self, index: usize, seats: usize) {
        self.seats -= seats;
        if let Some(queue) = self.queues.get_mut(index) {
            queue.seats -= seats;
            self.queued_seats -= seats;
        }
    }

    /// Frees the seats whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((until, seats, index))) = self.lingering.peek().copied()
            && until <= now
        {
            self.lingering.pop();
            self.release(index, seats);
        }
    }

    /// When to call [`Queues::turn`]: there is a line, and seats will be free then.
    pub fn next_turn(&self) -> Option<Instant> {
        if self.waiting == 0 {
            return None;
        }
        self.lingering.peek().map(|Reverse((until, ..))| *until)
    }

    /// Frees what has lingered long enough; returns who may run now.
    pub fn turn(&mut self, now: Instant) -> Vec<(W, Running)> {
        self.sync(now);
        self.expire(now);
        self.note_demand(now);
        self.dispatch(now)
    }

    pub fn virtual_time(&self) -> f64 {
        self.r
    }
}

/// Deals `hand` distinct cards of a deck from one hash value. Returns how many.
fn deal(hash: u64, deck: usize, hand: usize, cards: &mut [usize; HAND]) -> usize {
    let hand = hand.clamp(1, HAND).min(deck);
    let mut left = hash;
    for (dealt, card) in cards.iter_mut().enumerate().take(hand) {
        let remaining = (deck - dealt) as u64;
        *card = (left % remaining) as usize;
        left /= remaining;
    }
    // Each was drawn among those not drawn before: count past these, the latest first.
    for at in 1..hand {
        let mut card = cards[at];
        let (before, _) = cards.split_at(at);
        let mut sorted = [0usize; HAND];
        let sorted = &mut sorted[..at];
        sorted.copy_from_slice(before);
        sorted.sort_unstable();
        for taken in sorted {
            if card >= *taken {
                card += 1;
            }
        }
        cards[at] = card;
    }
    hand
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const FOUR: Shape = Shape::Queue {
        queues: 16,
        hand: 2,
        length: 3,
    };

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    proptest! {
        #[test]
        fn hands_have_distinct_cards(hash: u64, deck in 1usize..200, hand in 1usize..12) {
            let mut cards = [0; HAND];
            let count = deal(hash, deck, hand, &mut cards);
            prop_assert_eq!(count, hand.min(deck));
            let mut seen: Vec<_> = cards[..count].to_vec();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), count);
            prop_assert!(seen.iter().all(|card| *card < deck));
        }

        #[test]
        fn the_books_balance(steps in proptest::collection::vec((0u8..4, 0u64..6, 1usize..4), 1..300)) {
            let start = Instant::now();
            let mut queues: Queues<u64, u64> = Queues::new(FOUR, 4, start);
            let (mut running, mut waiting): (Vec<Running>, Vec<(usize, u64, u64)>) = (Vec::new(), Vec::new());
            let mut names = 0;
            let take = |ready: Vec<(u64, Running)>, running: &mut Vec<Running>, waiting: &mut Vec<(usize, u64, u64)>| {
                for (name, run) in ready {
                    waiting.retain(|(.., other)| *other != name);
                    running.push(run);
                }
            };
            for (step, (action, flow, seats)) in steps.into_iter().enumerate() {
                let now = start + ms(step as u64);
                match action {
                    0 | 1 => {
                        names += 1;
                        let mut work = Work::seats(seats);
                        if flow == 0 {
                            (work.last, work.latency) = (2, ms(3));
                        }
                        match queues.place(now, flow * 7919, work, names, || names) {
                            Placed::Run(run) => running.push(run),
                            Placed::Wait { queue, ticket, ready } => {
                                waiting.push((queue, ticket, names));
                                take(ready, &mut running, &mut waiting);
                            }
                            Placed::Full => {}
                        }
                    }
                    2 if !running.is_empty() => {
                        let run = running.remove(flow as usize % running.len());
                        let ready = queues.finish(now, &run);
                        take(ready, &mut running, &mut waiting);
                    }
                    3 if !waiting.is_empty() => {
                        let (queue, ticket, _) = waiting.remove(flow as usize % waiting.len());
                        prop_assert!(queues.cancel(now, queue, ticket, false).is_some());
                    }
                    _ => {}
                }
                prop_assert_eq!(queues.executing, running.len());
                prop_assert_eq!(queues.waiting, waiting.len());
                prop_assert!(queues.seats <= 4);
                let active = queues.queues.iter().filter(|queue| queue.is_active()).count();
                prop_assert_eq!(queues.active, active);
            }
            let mut now = start + ms(10_000);
            loop {
                now += ms(100);
                let ready = queues.turn(now);
                take(ready, &mut running, &mut waiting);
                let Some(run) = running.pop() else { break };
                let ready = queues.finish(now, &run);
                take(ready, &mut running, &mut waiting);
            }
            prop_assert!(queues.is_idle() && waiting.is_empty());
            prop_assert_eq!((queues.seats, queues.queued_seats, queues.waiting_seats), (0, 0, 0));
        }
    }

    /// Keeps every flow's line full and counts who is served.
    fn contend(weights: &[(u64, usize, u64)], rounds: usize) -> HashMap<u64, usize> {
        let start = Instant::now();
        let shape = Shape::Queue {
            queues: 64,
            hand: 1,
            length: 50,
        };
        let mut queues: Queues<u64, u64> = Queues::new(shape, 4, start);
        let mut served: HashMap<u64, usize> = HashMap::new();
        let mut running: Vec<(Instant, u64, Running)> = Vec::new();
        let mut now = start;
        let length = |flow: u64| {
            weights
                .iter()
                .find(|(f, ..)| *f == flow)
                .map_or(1, |(_, _, length)| *length)
        };
        for _ in 0..rounds {
            for (flow, seats, _) in weights {
                while queues.queues[(*flow % 64) as usize].waiting.len() < 5 {
                    match queues.place(now, *flow, Work::seats(*seats), *flow, || *flow) {
                        Placed::Run(run) => running.push((now + ms(length(*flow)), *flow, run)),
                        Placed::Wait { ready, .. } => {
                            running.extend(ready.into_iter().map(|(flow, run)| (now + ms(length(flow)), flow, run)));
                        }
                        Placed::Full => break,
                    }
                }
            }
            running.sort_by_key(|(end, ..)| *end);
            let (end, flow, run) = running.remove(0);
            now = now.max(end);
            *served.entry(flow).or_default() += run.work.initial * length(flow) as usize;
            let ready = queues.finish(now, &run);
            running.extend(ready.into_iter().map(|(flow, run)| (now + ms(length(flow)), flow, run)));
        }
        served
    }

    #[test]
    fn flows_get_equal_work_whatever_their_requests_cost() {
        for weights in [
            vec![(1, 1, 10), (2, 1, 10)],
            vec![(1, 1, 10), (2, 2, 10)],
            vec![(1, 1, 5), (2, 1, 40)],
        ] {
            let served = contend(&weights, 4000);
            let (one, two) = (served[&1] as f64, served[&2] as f64);
            assert!((one / two - 1.0).abs() < 0.2, "{weights:?}: {served:?}");
        }
    }

    #[test]
    fn a_full_queue_and_a_full_level_turn_away() {
        let now = Instant::now();
        let mut queues: Queues<u8, u8> = Queues::new(
            Shape::Queue {
                queues: 1,
                hand: 1,
                length: 2,
            },
            1,
            now,
        );
        assert!(matches!(queues.place(now, 0, Work::ONE, 0, || 0), Placed::Run(_)));
        for _ in 0..2 {
            assert!(matches!(queues.place(now, 0, Work::ONE, 0, || 0), Placed::Wait { .. }));
        }
        assert!(matches!(queues.place(now, 0, Work::ONE, 0, || 0), Placed::Full));
        let mut queues: Queues<u8, u8> = Queues::new(Shape::Reject, 1, now);
        // Wider than the level: alone it may.
        assert!(matches!(queues.place(now, 0, Work::seats(5), 0, || 0), Placed::Run(_)));
        assert!(matches!(queues.place(now, 0, Work::ONE, 0, || 0), Placed::Full));
        let mut queues: Queues<u8, u8> = Queues::new(Shape::Exempt, 0, now);
        for _ in 0..100 {
            assert!(matches!(queues.place(now, 0, Work::seats(9), 0, || 0), Placed::Run(_)));
        }
    }

    #[test]
    fn seats_linger_after_the_request() {
        let now = Instant::now();
        let mut queues: Queues<u8, u8> = Queues::new(FOUR, 2, now);
        let work = Work {
            initial: 1,
            last: 2,
            latency: ms(5),
        };
        let Placed::Run(run) = queues.place(now, 1, work, 0, || 0) else {
            panic!("did not run")
        };
        assert!(queues.finish(now, &run).is_empty());
        let Placed::Wait { ready, .. } = queues.place(now, 2, Work::ONE, 1, || 1) else {
            panic!("did not wait")
        };
        assert!(ready.is_empty());
        assert_eq!(queues.next_turn(), Some(now + ms(5)));
        assert!(queues.turn(now + ms(4)).is_empty());
        assert_eq!(queues.turn(now + ms(5)).len(), 1);
    }
}
