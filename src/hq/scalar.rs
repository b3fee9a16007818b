//! One TensorBoard event file with one scalar in it, byte by byte: enough to prove that TensorBoard reads what is
//! put before it, too little to be worth a protobuf library.
//!
//! The format: records of length, checksum, data, checksum (tensorflow/core/lib/io/record_writer.h); the data are
//! `Event` messages (tensorflow/core/util/event.proto).

use crate::hash::crc32c;

/// `now` is in seconds since 1970.
pub fn event_file(now: i64, tag: &str, value: f32) -> Vec<u8> {
    let version = [double(1, now as f64), bytes(3, b"brain.Event:2")].concat();
    let scalar = [bytes(1, tag.as_bytes()), float(2, value)].concat();
    let event = [double(1, now as f64), varint(2, 1), bytes(5, &bytes(1, &scalar))].concat();
    [record(&version), record(&event)].concat()
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()].concat()
}

/// The checksum that TFRecord uses: CRC-32C, rotated and offset.
fn masked(data: &[u8]) -> u32 {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xA282_EAD8)
}

// Protocol buffers' wire format: (field number, type), then the value.

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn float(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

fn varint(field: u8, small: u8) -> Vec<u8> {
    vec![field << 3, small]
}

fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).ok().filter(|n| *n < 128).expect("our messages are short");
    [&[field << 3 | 2, length][..], data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        // CRC-32C of "123456789" is e3069283 (RFC 3720, B.4 uses the same polynomial).
        assert_eq!(masked(b"123456789"), 0xE306_9283_u32.rotate_right(15).wrapping_add(0xA282_EAD8));
    }

    #[test]
    fn a_file_is_two_records() {
        let file = event_file(1_700_000_000, "probe", 0.25);
        let first = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let second = 12 + first + 4;
        assert_eq!(
            file.len(),
            second + 16 + u64::from_le_bytes(file[second..second + 8].try_into().unwrap()) as usize
        );
        assert!(file.windows(5).any(|w| w == b"probe"));
    }
}
