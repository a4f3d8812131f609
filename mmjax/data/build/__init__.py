"""`mmjax data build`: any source, filtered and without duplicates, to sharded ArrayRecord.

`command.build` runs it on this machine, `beam.build` as an Apache Beam pipeline. Both are made of the
same pure functions: `scan.scan` of a record, `plan.keep` of all that was seen, `form.stored` of a
record that is kept.
"""
