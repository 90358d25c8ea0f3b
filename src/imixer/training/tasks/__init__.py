"""What is particular to classification and to segmentation; the loop is one."""
