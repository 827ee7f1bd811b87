use stead_flights::passengers::{Clientele, Verdict};

fn three_answered() -> Clientele {
    let mut clients = Clientele::new();
    for number in 1..=3 {
        let passenger = clients.new_passenger();
        clients.answered(passenger, number, number);
    }
    clients
}

#[test]
fn answers_that_hold_are_neither_lost_nor_doubled() {
    let mut clients = three_answered();
    clients.answered(1, 2, 3);
    let verdict = clients.verdict(&vec![(0, vec![1]), (1, vec![2]), (2, vec![3]), (9, vec![4])]);
    assert_eq!(verdict, Verdict { answered: 3, answers: 4, lost: 0, doubled: 0, replayed: 0 });
}

#[test]
fn a_missing_effect_is_lost_and_a_second_one_doubled() {
    let verdict = three_answered().verdict(&vec![(0, vec![1]), (1, vec![2, 5])]);
    assert_eq!((verdict.lost, verdict.doubled), (1, 1));
}

#[test]
fn a_retry_with_another_answer_is_doubled() {
    let mut clients = three_answered();
    clients.answered(0, 7, 3);
    let verdict = clients.verdict(&vec![(0, vec![1]), (1, vec![2]), (2, vec![3])]);
    assert_eq!((verdict.lost, verdict.doubled), (0, 1));
}

#[test]
fn a_restore_may_undo_only_what_came_after_its_checkpoint_began() {
    // Answered when 1, 2 and 3 checkpoints had begun; the third is restored.
    let mut clients = three_answered();
    clients.restored(&vec![(0, vec![1]), (1, vec![2])], 3);
    assert_eq!(clients.waiting().collect::<Vec<_>>(), [2], "asked again");
    clients.answered(2, 3, 4);
    let verdict = clients.verdict(&vec![(0, vec![1]), (1, vec![2]), (2, vec![3])]);
    assert_eq!((verdict.lost, verdict.replayed), (0, 1));

    let mut clients = three_answered();
    clients.restored(&vec![(0, vec![1])], 3);
    clients.answered(1, 2, 4);
    clients.answered(2, 3, 4);
    let verdict = clients.verdict(&vec![(0, vec![1]), (1, vec![2]), (2, vec![3])]);
    assert_eq!(
        (verdict.lost, verdict.replayed),
        (1, 1),
        "the second was answered before the checkpoint began"
    );
}
