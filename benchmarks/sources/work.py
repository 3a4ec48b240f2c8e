"""The size of the data: 40,000 records of 512 ids, in eight files where there are several."""

RECORDS, LENGTH, SHARDS = 40_000, 512, 8
EOD = 0
