"""From folders of images to the lists that `datasets` reads; one script per image set."""
