use flate2::write::GzEncoder;
use std::io::Write as _;
use stead_flights::row::COLUMNS;
use stead_flights::{Flights, OnMalformed, ReadError, Reason, Totals};

const ROW: &str = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z";
const CANCELLED: &str = "2013,1,1,NA,1630,NA,NA,1815,NA,EV,4308,NA,EWR,RDU,NA,416,16,30,2013-01-01T21:00:00Z";

fn file(lines: &[&str]) -> String {
    let mut text = COLUMNS.join(",");
    for line in lines {
        text.push('\n');
        text.push_str(line);
    }
    text.push('\n');
    text
}

fn read(text: &str, on_malformed: OnMalformed) -> Result<Flights, ReadError> {
    Flights::read(text.as_bytes(), on_malformed)
}

#[test]
fn the_bundled_month_has_its_known_totals() {
    let flights = Flights::bundled();
    assert_eq!(flights.rows.len(), 27_004);
    let totals = Totals::of(&flights.rows);
    // The expected totals come from another program.
    let ua = totals.carriers[&"UA".parse().expect("a code")];
    assert_eq!((ua.flights, ua.cancelled, ua.dep_delay_minutes), (4637, 32, 38_342));
    assert_eq!(totals.airports[&"EWR".parse().expect("a code")].departures, 9893);
    assert_eq!(totals.airports[&"ORD".parse().expect("a code")].arrivals, 1269);
    assert_eq!((totals.airports.len(), totals.aircraft.count), (97, 3148));
    assert_eq!((totals.aircraft.legs, totals.aircraft.distance_miles), (26_849, 27_107_042));
    assert_eq!(totals.carriers.len(), 16);
    assert_eq!(totals.carriers.values().map(|carrier| carrier.flights).sum::<u64>(), 27_004);
    assert_eq!(totals.carriers.values().map(|carrier| carrier.cancelled).sum::<u64>(), 521);
    assert_eq!(totals.airports.values().map(|airport| airport.departures).sum::<u64>(), 27_004);
    assert_eq!(totals.airports.values().map(|airport| airport.arrivals).sum::<u64>(), 27_004);
    let tailless = flights.rows.iter().filter(|row| row.tail.is_none()).count() as u64;
    assert_eq!(totals.aircraft.legs + tailless, 27_004);
    assert_eq!(totals.messages(), 27_004 * 3 + totals.aircraft.legs);
}

#[test]
fn holes_count_as_the_issue_says() {
    let flights = read(&file(&[ROW, CANCELLED]), OnMalformed::Refuse).expect("both rows are good");
    let totals = Totals::of(&flights.rows);
    let ev = totals.carriers[&"EV".parse().expect("a code")];
    assert_eq!((ev.flights, ev.cancelled, ev.dep_delay_minutes), (1, 1, 0));
    assert_eq!(totals.airports[&"EWR".parse().expect("a code")].departures, 2);
    assert_eq!(totals.airports[&"RDU".parse().expect("a code")].arrivals, 1);
    assert_eq!((totals.aircraft.count, totals.aircraft.legs, totals.aircraft.distance_miles), (1, 1, 1400));
}

#[test]
fn gzip_quotes_empty_holes_floats_and_windows_line_ends_read_alike() {
    let plain = read(&file(&[ROW, CANCELLED]), OnMalformed::Refuse).expect("good");
    let other = format!("\u{feff}{}", file(&[
        "2013,1,1,517.0,515,2.0,830.0,819,11.0,\"UA\",1545,\"N14228\",\"EWR\",IAH,227.0,1400,5,15,2013-01-01T10:00:00Z",
        "2013,1,1,,1630,,,1815,,EV,4308,,EWR,RDU,,416,16,30,2013-01-01T21:00:00Z",
        "",
    ]).replace('\n', "\r\n"));
    assert_eq!(read(&other, OnMalformed::Refuse).expect("good"), plain);

    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(file(&[ROW, CANCELLED]).as_bytes()).expect("memory takes it");
    let gzip = gzip.finish().expect("memory takes it");
    let unzipped = Flights::read(&gzip[..], OnMalformed::Refuse).expect("good");
    assert_eq!(unzipped, plain);
    assert_eq!(unzipped.fingerprint(), plain.fingerprint());
    let cut = Flights::read(&gzip[..gzip.len() - 12], OnMalformed::Skip);
    assert!(
        matches!(cut, Err(ReadError::Io { .. })),
        "a gzip file that is cut is refused, whatever the policy: {cut:?}"
    );
}

#[test]
fn columns_may_stand_in_another_order() {
    let mut header: Vec<&str> = COLUMNS.to_vec();
    let mut fields: Vec<&str> = ROW.split(',').collect();
    header.reverse();
    fields.reverse();
    header.push("note");
    fields.push("on time");
    let text = format!("{}\n{}\n", header.join(","), fields.join(","));
    let flights = read(&text, OnMalformed::Refuse).expect("good");
    assert_eq!(flights, read(&file(&[ROW]), OnMalformed::Refuse).expect("good"));
}

#[test]
fn malformed_rows_are_named_by_line_and_skipped_or_refused() {
    let long = "x".repeat(10_000);
    let bad = [
        ("2013,1,1", Reason::Fields { found: 3, expected: 19 }),
        (long.as_str(), Reason::TooLong { max: 4096 }),
        (
            &*ROW.replace(",2,830", ",late,830"),
            Reason::Field { column: "dep_delay", found: "late".into(), expected: "a whole number" },
        ),
        (
            &*ROW.replace("1400", "-1400"),
            Reason::Field { column: "distance", found: "-1400".into(), expected: "a distance in miles" },
        ),
        (&*ROW.replace("EWR", "NA"), Reason::Missing { column: "origin" }),
        (&*ROW.replace("UA", ""), Reason::Missing { column: "carrier" }),
        (
            &*ROW.replace("N14228", "N 14 228"),
            Reason::Field { column: "tailnum", found: "N 14 228".into(), expected: "a code" },
        ),
        (
            &*ROW.replace(",5,15,", ",5,x,"),
            Reason::Field { column: "minute", found: "x".into(), expected: "a whole number" },
        ),
    ];
    for (line, reason) in bad {
        let text = file(&[ROW, line, CANCELLED]);
        let skipped = read(&text, OnMalformed::Skip).expect("the rest is good");
        assert_eq!(skipped.rows.len(), 2, "{line}");
        assert_eq!(skipped.malformed.len(), 1, "{line}");
        assert_eq!((skipped.malformed[0].line, &skipped.malformed[0].reason), (3, &reason));
        match read(&text, OnMalformed::Refuse) {
            Err(ReadError::Malformed(malformed)) => {
                assert_eq!((malformed.line, malformed.reason), (3, reason))
            }
            other => panic!("{line} must be refused: {other:?}"),
        }
    }
    let mut bytes = file(&[ROW, ROW]).into_bytes();
    let at = bytes.len() - 5;
    bytes[at] = 0xff;
    let skipped = Flights::read(&bytes[..], OnMalformed::Skip).expect("one row is good");
    assert_eq!(skipped.malformed[0].reason, Reason::NotText);
}

#[test]
fn files_of_something_else_are_refused() {
    for text in ["", "\n", "a,b,c\n1,2,3\n", ROW] {
        assert!(matches!(read(text, OnMalformed::Skip), Err(ReadError::Header { .. })), "{text:?}");
    }
    assert!(matches!(read(&file(&[]), OnMalformed::Skip), Err(ReadError::Empty)));
    let none = Flights::open(std::path::Path::new("no/such/file.csv"), OnMalformed::Skip);
    assert!(matches!(none, Err(ReadError::Open { .. })));
}

#[test]
fn differences_are_counted_both_ways() {
    let flights = Flights::bundled();
    let expected = Totals::of(&flights.rows);
    assert!(expected.difference(&expected).is_none());
    let lost = Totals::of(&flights.rows[1..]).difference(&expected);
    assert_eq!((lost.missing, lost.extra), (4, 0), "a flight, a departure, an arrival and a leg: {lost:?}");
    let doubled = Totals::of(flights.rows.iter().chain(&flights.rows[..1])).difference(&expected);
    assert_eq!((doubled.missing, doubled.extra), (0, 4), "{doubled:?}");
}
