//! The times of the decisions.

use super::health::HealthSettings;
use crate::ids::Micros;

/// The times of the decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The judgement on nodes.
    pub health: HealthSettings,
    /// The time between two looks at everything, if nothing happens; 20 milliseconds by default.
    pub tick: Micros,
    /// The time after which a seal, a record or an order that was not answered is sent again; 50 milliseconds by default.
    pub send_again: Micros,
    /// The time after which a command that changed nothing is proposed again, and for which an epoch that is not active waits for
    /// members that are gone; 500 milliseconds by default.
    pub propose_again: Micros,
    /// The time for which a planned change waits for the replica that is to lead, and a change after a lease for the last answers;
    /// 100 milliseconds by default.
    pub wait: Micros,
    /// The time for which an operator's failover waits for enough members before it goes on with too few; 2 seconds by default.
    pub force_wait: Micros,
    /// The time for which a failover waits for all members, if those that answered may have lost what they acknowledged by a power cut,
    /// before it goes on without that; 10 seconds by default.
    pub doubt_wait: Micros,
    /// The time in which a primary has to begin to lead; 300 milliseconds by default.
    pub lead: Micros,
    /// The time after which the replicas of a node that has failed are replaced; 10 minutes by default.
    pub replace_after: Micros,
    /// The time for which a node that seems to have an older disk has to insist; 2 seconds by default.
    pub doubt: Micros,
    /// Learners that catch up at the same time; 4 by default.
    pub learners_max: usize,
    /// The least time between two moves that make loads even; 1 second by default.
    pub balance: Micros,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            health: HealthSettings::default(),
            tick: Micros::from_millis(20),
            send_again: Micros::from_millis(50),
            propose_again: Micros::from_millis(500),
            wait: Micros::from_millis(100),
            force_wait: Micros::from_secs(2),
            doubt_wait: Micros::from_secs(10),
            lead: Micros::from_millis(300),
            replace_after: Micros::from_secs(600),
            doubt: Micros::from_secs(2),
            learners_max: 4,
            balance: Micros::from_secs(1),
        }
    }
}
